#include "coordinator/box_simulation.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "cluster/pipeline_plan.h"

namespace caravan {
namespace {

/// The times of stages, each computed once.
class StageTimes {
 public:
  StageTimes(const ModelConfig& config, const ModelCost& cost, absl::Span<const BoxStage> stages,
             const DecodeLoad& load, int64_t prefill_chunk)
      : config_(config), load_(load) {
    for (const BoxStage& stage : stages) {
      costs_.push_back(cost.Of(stage.stage));
      boxes_.push_back(WithoutSteps(config, stage.stage, static_cast<int>(stages.size()),
                                    prefill_chunk, *stage.box));
    }
  }

  /// Errors: as PredictStage.
  absl::Status Check() const {
    for (size_t s = 0; s < boxes_.size(); ++s) {
      CARAVAN_RETURN_IF_ERROR(PredictStage(config_, costs_[s], boxes_[s], load_, 1).status());
    }
    return absl::OkStatus();
  }

  double Seconds(int stage, const StepShape& step) {
    const int64_t blocks = CeilDiv(std::max<int64_t>(1, step.attended_tokens), kKvBlockTokens);
    const auto [it, is_new] =
        seconds_.try_emplace({stage, step.rows, step.sampled_rows, blocks}, 0);
    if (is_new) {
      DecodeLoad load = load_;
      load.attended = blocks * kKvBlockTokens;
      load.sampled_share = static_cast<double>(step.sampled_rows) / static_cast<double>(step.rows);
      const auto s = static_cast<size_t>(stage);
      const absl::StatusOr<StageTime> time =
          PredictStage(config_, costs_[s], boxes_[s], load, static_cast<double>(step.rows));
      CARAVAN_CHECK(time.ok());  // what fits does not depend on the step: Check
      it->second = time->seconds;
    }
    return it->second;
  }

  double SendSeconds(int stage, int64_t rows) const {
    const auto s = static_cast<size_t>(stage);
    return caravan::SendSeconds(config_, boxes_[s], boxes_[s + 1], static_cast<double>(rows));
  }

  double LatencySeconds(int stage) const {
    // A stage alone serves the coordinator beside it.
    if (boxes_.size() == 1) return 0;
    const auto s = static_cast<size_t>(stage);
    return s + 1 < boxes_.size() ? HopLatency(boxes_[s], boxes_[s + 1])
                                 : boxes_[s].network.latency_seconds;
  }

 private:
  const ModelConfig& config_;
  const DecodeLoad load_;
  std::vector<Box> boxes_;  // of each stage, without what steps take
  std::vector<LayerCost> costs_;
  absl::flat_hash_map<std::tuple<int, int64_t, int64_t, int64_t>, double> seconds_;
};

}  // namespace

absl::StatusOr<SimulatedPipeline> SimulateBoxes(const ModelConfig& config, const ModelCost& cost,
                                                absl::Span<const BoxStage> stages,
                                                const DecodeLoad& load, int64_t prefill_chunk) {
  const auto times = std::make_shared<StageTimes>(config, cost, stages, load, prefill_chunk);
  CARAVAN_RETURN_IF_ERROR(times->Check());
  SimulatedPipeline pipeline;
  Scheduler::Options& scheduling = pipeline.scheduling;
  scheduling.plan_version = 1;
  scheduling.num_stages = static_cast<int>(stages.size());
  scheduling.kv_block_tokens = kKvBlockTokens;
  scheduling.kv_blocks = load.jobs * CeilDiv(load.context_tokens, kKvBlockTokens);
  scheduling.near_kv_blocks = scheduling.kv_blocks;
  scheduling.max_step_tokens = prefill_chunk;
  scheduling.prefill_chunk = prefill_chunk;
  pipeline.stage_seconds = [times](int stage, const StepShape& step) {
    return times->Seconds(stage, step);
  };
  pipeline.send_seconds = [times](int stage, int64_t rows) {
    return times->SendSeconds(stage, rows);
  };
  pipeline.latency_seconds = [times](int stage) { return times->LatencySeconds(stage); };
  return pipeline;
}

}  // namespace caravan
