#include "cli/bench_offload.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "cli/bench_load.h"
#include "cli/made_up_routing_backend.h"
#include "cli/read_meter.h"
#include "cli/visit_meter.h"
#include "cluster/pipeline_plan.h"
#include "model/stage_spec.h"
#include "worker/experts/expert_files.h"

namespace caravan {
namespace {

constexpr int kMaxWarmUpRounds = 64;

/// Of a stage: its layers with experts, and what is noted of them.
struct StageMeter {
  explicit StageMeter(ReadMeter* sum) : reads(sum) {}

  int num_layers = 0;
  ReadMeter reads;
  VisitLog visits;
};

int NumExpertLayers(const ModelConfig& config, int first_layer, int end_layer) {
  return static_cast<int>(
      ExpertFiles::LayersOf(config, {first_layer, end_layer, true, true}).size());
}

/// Runs the rounds of one load. Used by one thread.
class Bench {
 public:
  Bench(const StoredModel& model, const OffloadLoad& load)
      : model_(model), load_(load), generator_(load.seed) {
    for (int i = 0; i < load.num_workers; ++i) {
      meters_.push_back(std::make_unique<StageMeter>(&reads_));
    }
    std::uniform_int_distribution<int32_t> token(
        0, static_cast<int32_t>(model.config().vocab_size) - 1);
    prompts_.resize(static_cast<size_t>(load.jobs));
    for (std::vector<int32_t>& prompt : prompts_) {
      for (int64_t i = 0; i < load.prompt_tokens; ++i) prompt.push_back(token(generator_));
    }
  }

  absl::Status Start(LocalPipeline::Options options);
  absl::Status WarmUp();
  absl::StatusOr<OffloadRound> Run(int64_t expert_bytes, DiskGauge& gauge);
  int64_t slots() const;

 private:
  std::unique_ptr<Backend> Prepare(size_t index, const StageSpec& spec,
                                   std::unique_ptr<Backend> backend, Stage::Options& options);
  absl::StatusOr<absl::Duration> RunJobs();
  bool IsFull() const;

  const StoredModel& model_;
  const OffloadLoad& load_;
  std::mt19937_64 generator_;
  // By job. Long ones are in the KV cache after the first round.
  std::vector<std::vector<int32_t>> prompts_;
  ReadMeter reads_;  // of all stages
  std::vector<std::unique_ptr<StageMeter>> meters_;
  std::unique_ptr<LocalPipeline> pipeline_;  // last: it uses the above
  std::optional<DiskGauge::Rate> last_rate_;
};

absl::Status Bench::Start(LocalPipeline::Options options) {
  options.num_workers = load_.num_workers;
  // One block more for each, which the scheduler leaves to those that run when another begins: all
  // are to run at once.
  const int64_t job_tokens =
      WholeKvBlocks(load_.prompt_tokens + load_.tokens_per_job) + kKvBlockTokens;
  options.kv_tokens = load_.jobs * job_tokens;
  options.prepare_stage = [this](size_t index, const StageSpec& spec,
                                 std::unique_ptr<Backend> backend, Stage::Options& stage) {
    return Prepare(index, spec, std::move(backend), stage);
  };
  CARAVAN_ASSIGN_OR_RETURN(pipeline_, LocalPipeline::Create(model_, options));
  // No slots: not even a store was needed.
  const ModelConfig& config = model_.config();
  const int64_t experts =
      config.n_routed_experts * NumExpertLayers(config, 0, config.num_hidden_layers);
  if (slots() == 0 || slots() == experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ram: ", FormatByteSize(options.memory_budget_bytes),
                     " hold all experts, so nothing would be read"));
  }
  if (pipeline_->kv_tokens() < options.kv_tokens) {
    return absl::OutOfRangeError(absl::StrCat(
        "--ram: beside the experts, ", FormatByteSize(options.memory_budget_bytes),
        " leave room for a KV cache of ", pipeline_->kv_tokens(), " tokens; ", load_.jobs,
        " jobs at once, of ", job_tokens, " each, need ", options.kv_tokens,
        ": give fewer --jobs, --prompt or --tokens, or more --ram or --kv-disk"));
  }
  return absl::OkStatus();
}

std::unique_ptr<Backend> Bench::Prepare(size_t index, const StageSpec& spec,
                                        std::unique_ptr<Backend> backend, Stage::Options& options) {
  const ModelConfig& config = model_.config();
  StageMeter& meter = *meters_[index];
  meter.num_layers = NumExpertLayers(config, spec.first_layer, spec.end_layer);
  options.experts.make_queue =
      [&meter](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<ReadQueue> queue, ReadQueue::Create(reads));
    return MakeMeteredQueue(std::move(queue), &meter.reads);
  };
  if (load_.routing.has_value()) {
    SyntheticRouting::Options routing = *load_.routing;
    routing.num_layers = NumExpertLayers(config, 0, config.num_hidden_layers);
    routing.n_routed_experts = static_cast<int>(config.n_routed_experts);
    routing.num_experts_per_tok = static_cast<int>(config.router.num_experts_per_tok);
    routing.num_sequences = load_.jobs;
    backend = std::make_unique<MadeUpRoutingBackend>(std::move(backend), routing,
                                                     NumExpertLayers(config, 0, spec.first_layer),
                                                     meter.num_layers);
  }
  return MakeVisitMeter(std::move(backend), &meter.reads, &meter.visits);
}

/// From the first step to the last token.
absl::StatusOr<absl::Duration> Bench::RunJobs() {
  PipelineDriver& driver = pipeline_->driver();
  // All begin with the same step.
  driver.PauseAdmission();
  std::vector<std::unique_ptr<JobHandle>> jobs;
  for (const std::vector<int32_t>& prompt : prompts_) {
    JobSpec spec;
    spec.prompt = prompt;
    spec.max_new_tokens = load_.tokens_per_job;
    spec.sampling.set_temperature(static_cast<float>(kBenchTemperature));
    spec.sampling.set_seed(generator_());
    CARAVAN_ASSIGN_OR_RETURN(jobs.emplace_back(), driver.Submit(std::move(spec)));
  }
  const absl::Duration start = SteadyClock().Now();
  driver.ResumeAdmission();
  for (const std::unique_ptr<JobHandle>& job : jobs) {
    CARAVAN_RETURN_IF_ERROR(ReadReply(*job).status());
  }
  return SteadyClock().Now() - start;
}

/// Whether no stage has a free slot in its cache any more.
bool Bench::IsFull() const {
  for (const LocalPipeline::StageStats& stage : pipeline_->stages()) {
    if (stage.expert_slots > 0 && stage.experts.evictions == 0) return false;
  }
  return true;
}

absl::Status Bench::WarmUp() {
  // A cache that keeps a fixed set may never put anything out.
  for (int round = 0; round < kMaxWarmUpRounds; ++round) {
    const int64_t bytes_before = reads_.counters().read_bytes;
    CARAVAN_RETURN_IF_ERROR(RunJobs().status());
    // Where nothing more is read, the choices are too few to fill it.
    if (IsFull() || reads_.counters().read_bytes == bytes_before) break;
  }
  for (const std::unique_ptr<StageMeter>& meter : meters_) meter->visits.Take();
  return absl::OkStatus();
}

absl::StatusOr<OffloadRound> Bench::Run(int64_t expert_bytes, DiskGauge& gauge) {
  // What was read ahead at the end of a round is the next one's.
  reads_.WaitUntilIdle();
  if (!last_rate_.has_value()) {
    CARAVAN_ASSIGN_OR_RETURN(last_rate_, gauge.Measure());
  }
  const std::vector<LocalPipeline::StageStats> stages_before = pipeline_->stages();
  const ReadMeter::Counters reads_before = reads_.counters();
  CARAVAN_ASSIGN_OR_RETURN(const absl::Duration took, RunJobs());
  reads_.WaitUntilIdle();
  const std::vector<LocalPipeline::StageStats> stages = pipeline_->stages();
  const ReadMeter::Counters reads = reads_.counters();
  const DiskGauge::Rate rate_before = *last_rate_;
  CARAVAN_ASSIGN_OR_RETURN(last_rate_, gauge.Measure());

  OffloadRound round;
  round.tokens = load_.jobs * load_.tokens_per_job;
  round.seconds = absl::ToDoubleSeconds(took);
  round.steps = static_cast<int64_t>(stages[0].load.steps() - stages_before[0].load.steps());
  round.read_bytes = reads.read_bytes - reads_before.read_bytes;
  round.read_seconds = absl::ToDoubleSeconds(reads.busy - reads_before.busy);
  round.disk.gb_per_s = (rate_before.gb_per_s + last_rate_->gb_per_s) / 2;
  round.disk.fio_gb_per_s = (rate_before.fio_gb_per_s + last_rate_->fio_gb_per_s) / 2;
  OffloadRun run;
  run.stages_overlap = stages.size() > 1 && load_.jobs > 1;
  run.expert_bytes = expert_bytes;
  for (size_t i = 0; i < stages.size(); ++i) {
    StageRun& stage = run.stages.emplace_back();
    stage.busy = absl::Seconds(stages[i].load.busy_s() - stages_before[i].load.busy_s());
    stage.visits = meters_[i]->visits.Take();
    stage.num_layers = meters_[i]->num_layers;
    stage.slots = stages[i].expert_slots;
    for (const ExpertVisit& visit : stage.visits) round.touched += visit.touched;
    round.hits += stages[i].experts.hits - stages_before[i].experts.hits;
  }
  round.bounds = ComputeOffloadBounds(run, 1e9 * round.disk.gb_per_s);
  return round;
}

int64_t Bench::slots() const {
  int64_t slots = 0;
  for (const LocalPipeline::StageStats& stage : pipeline_->stages()) slots += stage.expert_slots;
  return slots;
}

}  // namespace

absl::StatusOr<OffloadResult> MeasureOffload(const StoredModel& model,
                                             LocalPipeline::Options pipeline,
                                             const OffloadLoad& load, DiskGauge& gauge) {
  Bench bench(model, load);
  CARAVAN_RETURN_IF_ERROR(bench.Start(std::move(pipeline)));
  CARAVAN_RETURN_IF_ERROR(bench.WarmUp());
  OffloadResult result;
  result.slots = bench.slots();
  for (int i = 0; i < load.rounds; ++i) {
    CARAVAN_ASSIGN_OR_RETURN(result.rounds.emplace_back(), bench.Run(gauge.expert_bytes(), gauge));
  }
  return result;
}

}  // namespace caravan
