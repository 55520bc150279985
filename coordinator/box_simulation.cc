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

/// The times of stages. Each is computed once for each shape of steps, and once for all stages that
/// are alike, as most of a pipeline of equal boxes are.
class StageTimes {
 public:
  StageTimes(const ModelConfig& config, const ModelCost& cost, absl::Span<const BoxStage> stages,
             const DecodeLoad& load, int64_t prefill_chunk)
      : config_(config), load_(load) {
    for (const BoxStage& stage : stages) {
      boxes_.push_back(WithoutSteps(config, stage.stage, static_cast<int>(stages.size()),
                                    prefill_chunk, *stage.box));
      const Kind kind = {boxes_.size() - 1, cost.Of(stage.stage)};
      const auto alike = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& other) {
        return other.cost == kind.cost && boxes_[other.stage] == boxes_[kind.stage];
      });
      kind_of_.push_back(static_cast<size_t>(alike - kinds_.begin()));
      if (alike == kinds_.end()) kinds_.push_back(kind);
    }
  }

  /// Errors: as PredictStage.
  absl::Status Check() const {
    for (const Kind& kind : kinds_) {
      CARAVAN_RETURN_IF_ERROR(
          PredictStage(config_, kind.cost, boxes_[kind.stage], load_, 1).status());
    }
    return absl::OkStatus();
  }

  double Seconds(int stage, const StepShape& step) {
    // Stages are asked one after the other for the same step.
    const Shape shape = {step.rows, step.sampled_rows,
                         CeilDiv(std::max<int64_t>(1, step.attended_tokens), kKvBlockTokens)};
    if (latest_ == nullptr || shape != latest_shape_) {
      latest_shape_ = shape;
      latest_ = SecondsOfKinds(shape);
    }
    return latest_[kind_of_[static_cast<size_t>(stage)]];
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
  struct Kind {
    size_t stage = 0;  // a stage of it
    LayerCost cost;
  };
  using Shape = std::tuple<int64_t, int64_t, int64_t>;  // rows, sampled ones, blocks of KV

  const double* SecondsOfKinds(const Shape& shape) {
    const auto [it, is_new] = seconds_.try_emplace(shape);
    if (is_new) {
      const auto& [rows, sampled_rows, blocks] = shape;
      DecodeLoad load = load_;
      load.attended = blocks * kKvBlockTokens;
      load.sampled_share = static_cast<double>(sampled_rows) / static_cast<double>(rows);
      for (const Kind& kind : kinds_) {
        const absl::StatusOr<StageTime> time =
            PredictStage(config_, kind.cost, boxes_[kind.stage], load, static_cast<double>(rows));
        CARAVAN_CHECK(time.ok());  // what fits does not depend on the step: Check
        it->second.push_back(time->seconds);
      }
    }
    return it->second.data();  // stays where it is when the map grows
  }

  const ModelConfig& config_;
  const DecodeLoad load_;
  std::vector<Box> boxes_;  // of each stage, without what steps take
  std::vector<Kind> kinds_;
  std::vector<size_t> kind_of_;                              // by stage
  absl::flat_hash_map<Shape, std::vector<double>> seconds_;  // by kind
  Shape latest_shape_;
  const double* latest_ = nullptr;  // for that
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
