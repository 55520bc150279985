#include "cli/local_pipeline.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/thread_count.h"
#include "cluster/in_process_channel.h"
#include "cluster/planner.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/kv_rows.h"
#include "model/layer_cost.h"
#include "model/step_memory.h"
#include "model/stored_model_cost.h"
#include "worker/experts/stage_trace.h"
#include "worker/process_memory.h"

namespace caravan {
namespace {

// Of the one plan that a local pipeline ever has.
constexpr uint64_t kPlanVersion = 1;

// Steps that may wait between two stages.
constexpr size_t kChannelSteps = 4;

int64_t ContextOf(const StoredModel& model, const LocalPipeline::Options& options) {
  return options.context_tokens > 0 ? options.context_tokens
                                    : model.config().max_position_embeddings;
}

/// Splits the model over equal workers: each large enough for everything, or with its part of the
/// budget.
absl::StatusOr<PipelinePlan> PlanEvenly(const StoredModel& model,
                                        const LocalPipeline::Options& options,
                                        const ComputeDevice& device, int num_threads) {
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(model, options.speculate));
  PlannerOptions planner;
  planner.version = kPlanVersion;
  planner.context_tokens = WholeKvBlocks(ContextOf(model, options));
  planner.kv_tokens = std::max(planner.context_tokens, WholeKvBlocks(options.kv_tokens));
  planner.step_memory = ComputeStepMemory(model.config(), options.prefill_chunk);
  planner.card_step_memory =
      ComputeCardStepMemory(model.config(), options.prefill_chunk, kKvBlockTokens);
  PlannerWorker worker;
  worker.kv_dtype = options.kv_dtype;
  worker.kv_disk_bytes = options.kv_disk_bytes / options.num_workers;
  if (device.is_card()) {
    worker.on_card = true;
    worker.memory_budget_bytes = device.memory_budget_bytes();
    worker.offloads = options.memory_budget_bytes > 0;
  } else if (options.memory_budget_bytes > 0) {
    worker.memory_budget_bytes =
        (options.memory_budget_bytes - options.memory_aside_bytes) / options.num_workers;
    worker.offloads = true;
    worker.process_bytes = ProcessBytes(num_threads) / options.num_workers;
  } else {
    const LayerCost whole =
        cost.Of({0, model.config().num_hidden_layers, true, true, options.speculate});
    worker.memory_budget_bytes =
        whole.weight_bytes +
        KvBytes(options.kv_dtype, whole.kv_values_per_token * planner.kv_tokens);
  }
  std::vector<PlannerWorker> workers;
  for (int i = 0; i < options.num_workers; ++i) {
    worker.id = WorkerId(i + 1);
    worker.name = absl::StrCat("local worker ", i + 1);
    workers.push_back(worker);
  }
  return PlanStages(cost, workers, planner);
}

/// What a plan lacks, and whose budget that was.
absl::Status TooLittle(const LocalPipeline::Options& options, const absl::Status& lacking) {
  std::string ram = absl::StrCat("--ram ", FormatByteSize(options.memory_budget_bytes));
  if (options.memory_aside_bytes > 0) {
    absl::StrAppend(&ram, ", of which ", FormatByteSize(options.memory_aside_bytes), " are for ",
                    options.memory_aside_use);
  }
  const bool fits = lacking.code() != absl::StatusCode::kFailedPrecondition;
  return Annotate(fits ? lacking : absl::OutOfRangeError(lacking.message()), ram);
}

}  // namespace

DeviceFlags LocalPipeline::Options::DeviceOfWorker() const {
  DeviceFlags flags = device;
  flags.sharers *= num_workers;
  return flags;
}

void LocalPipeline::Options::LeaveHalf() {
  memory_aside_bytes = CeilDiv(memory_budget_bytes, int64_t{2});
  memory_aside_use = "the other model";
  kv_disk_bytes /= 2;
  device.sharers *= 2;
}

absl::Status LocalPipeline::CheckOptions(const StoredModel& model, const Options& options) {
  const ModelConfig& config = model.config();
  if (options.num_workers < 1 || options.num_workers > config.num_hidden_layers) {
    return absl::InvalidArgumentError(absl::StrCat("--workers ", options.num_workers,
                                                   ": this model splits over 1 to ",
                                                   config.num_hidden_layers, " workers"));
  }
  if (options.prefill_chunk < 1) {
    return absl::InvalidArgumentError("a prefill chunk must be at least 1 token");
  }
  if (options.context_tokens < 0 || options.context_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("--context ", options.context_tokens,
                                                   ": the model allows 1 to ",
                                                   config.max_position_embeddings, " tokens"));
  }
  const KvDiskFlags kv_disk = {options.kv_disk_bytes, options.kv_disk_directory};
  CARAVAN_RETURN_IF_ERROR(kv_disk.Check());
  return Annotate(CheckKvDType(config.Mla(), options.kv_dtype),
                  absl::StrCat("--kv ", KvOptionName(options.kv_dtype), ": ", model.path()));
}

absl::StatusOr<std::unique_ptr<LocalPipeline>> LocalPipeline::Create(const StoredModel& model,
                                                                     const Options& options) {
  CARAVAN_RETURN_IF_ERROR(CheckOptions(model, options));
  const ModelConfig& config = model.config();
  CARAVAN_ASSIGN_OR_RETURN(const int num_threads, ThreadCount(options.num_threads));
  CpuOptions cpu;
  cpu.num_threads = std::max(1, num_threads / options.num_workers);
  cpu.isa = options.isa;
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<const ComputeDevice> device,
                           options.DeviceOfWorker().Open(cpu));
  absl::StatusOr<PipelinePlan> planned = PlanEvenly(model, options, *device, num_threads);
  if (!planned.ok() && options.memory_budget_bytes > 0 && !device->is_card()) {
    return TooLittle(options, planned.status());
  }
  CARAVAN_ASSIGN_OR_RETURN(const PipelinePlan plan, std::move(planned));

  std::unique_ptr<LocalPipeline> pipeline(new LocalPipeline);
  PipelineDriver::Options driver_options;
  driver_options.vocab_size = config.vocab_size;
  driver_options.context_tokens = ContextOf(model, options);
  driver_options.prefill_chunk = options.prefill_chunk;
  pipeline->driver_ = std::make_unique<PipelineDriver>(std::move(driver_options));

  PipelineDriver::Pipeline attached;
  attached.plan_version = kPlanVersion;
  attached.num_stages = static_cast<int>(plan.stages.size());
  attached.kv_block_tokens = kKvBlockTokens;
  attached.kv_blocks = INT64_MAX;
  attached.near_kv_blocks = INT64_MAX;
  attached.max_step_tokens = options.prefill_chunk;
  attached.drafts = options.speculate;

  // From the last stage to the first, so that each finds the next one there.
  StepReceiver next = [driver = pipeline->driver_.get()](v1::Step step) {
    return driver->Receive(std::move(step));
  };
  for (size_t i = plan.stages.size(); i-- > 0;) {
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                             device->MakeBackend(config, options.prefill_chunk));
    Stage::Options stage_options;
    stage_options.name = absl::StrCat("local worker ", i + 1);
    stage_options.kv_dtype = options.kv_dtype;
    stage_options.kv_budget_bytes = plan.stages[i].kv_bytes;
    stage_options.kv_disk_bytes = plan.stages[i].kv_disk_bytes;
    stage_options.kv_disk_directory = options.kv_disk_directory;
    stage_options.max_step_tokens = options.prefill_chunk;
    stage_options.expert_budget_bytes = plan.stages[i].expert_bytes;
    stage_options.experts = options.experts;
    if (device->is_card() && stage_options.expert_budget_bytes > 0) {
      const int64_t ram_bytes =
          (options.memory_budget_bytes - options.memory_aside_bytes - ProcessBytes(num_threads)) /
          options.num_workers;
      CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, device->MakeCpu());
      CARAVAN_RETURN_IF_ERROR(SplitExpertBudget(config, plan.stages[i].stage, ram_bytes,
                                                std::move(cpu), stage_options));
    }
    if (!options.record_routing.empty()) {
      absl::StatusOr<std::unique_ptr<RoutingObserver>> routing =
          RecordStage(options.record_routing, model.fingerprint(), config, plan.stages[i].stage);
      if (!routing.ok()) return Annotate(routing.status(), "--record-routing");
      stage_options.routing = *std::move(routing);
    }
    if (options.prepare_stage) {
      backend = options.prepare_stage(i, plan.stages[i].stage, std::move(backend), stage_options);
    }
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Stage> stage,
                             Stage::Create(config, plan.stages[i].stage, model, std::move(backend),
                                           stage_options, [](int64_t, int64_t) { return true; }));
    const KvCache& kv = stage->kv_cache();
    attached.kv_blocks = std::min(attached.kv_blocks, kv.num_blocks());
    attached.near_kv_blocks =
        std::min(attached.near_kv_blocks, kv.num_blocks() - kv.blocks_on_disk());
    Worker worker = {stage.get(), nullptr};
    worker.loop = std::make_unique<StepLoop>(
        kPlanVersion, std::move(stage), MakeInProcessChannel(std::move(next), kChannelSteps),
        [](const absl::Status& why) {
          LogWarning("local_hop_broken", {{"why", why.message()}});
        });
    next = [loop = worker.loop.get()](v1::Step step) { return loop->Receive(std::move(step)); };
    pipeline->workers_.insert(pipeline->workers_.begin(), std::move(worker));
  }
  attached.first_hop = MakeInProcessChannel(std::move(next), kChannelSteps);
  pipeline->kv_tokens_ = attached.kv_blocks * kKvBlockTokens;
  pipeline->driver_->Attach(std::move(attached));
  return pipeline;
}

LocalPipeline::~LocalPipeline() {
  driver_->Shutdown();
  // In the order of the ring: a worker that ends no longer sends to the one after it.
  for (Worker& worker : workers_) worker.loop.reset();
}

std::vector<LocalPipeline::StageStats> LocalPipeline::stages() const {
  std::vector<StageStats> stages;
  for (const Worker& worker : workers_) {
    StageStats& stats = stages.emplace_back();
    stats.spec = worker.stage->spec();
    stats.load = worker.loop->load();
    stats.kv_blocks = worker.stage->kv_cache().num_blocks();
    stats.kv_blocks_on_disk = worker.stage->kv_cache().blocks_on_disk();
    if (worker.stage->experts() == nullptr) continue;
    stats.expert_slots = worker.stage->experts()->num_slots();
    stats.experts = worker.stage->experts()->counters();
  }
  return stages;
}

void LocalPipelineFlags::AddTo(CLI::App& command) {
  command.add_option("--model", model, kModelHelp)->required();
  command.add_option("--workers", workers, "Split the layers over so many stages")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command.add_option("--threads", threads, "CPU threads, of all stages together; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  CLI::Option* const ram_option = AddByteSizeOption(
      command, "--ram", ram,
      "Memory of the whole process, such as 24GiB: experts of a packed model that do not fit stay "
      "on disk, and are read as steps want them; if not given, everything is in memory");
  command
      .add_option("--context", context,
                  "Longest prompt with its reply, in tokens; 0: as the model allows")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str();
  AddIsaOption(command, isa);
  device.AddTo(command);
  AddKvOption(command, kv_dtype);
  kv_disk.AddTo(command)->needs(ram_option);
  experts.AddTo(command);
}

LocalPipeline::Options LocalPipelineFlags::Options() const {
  LocalPipeline::Options options;
  options.num_workers = workers;
  options.num_threads = threads;
  options.memory_budget_bytes = ram;
  options.context_tokens = context;
  options.isa = isa;
  options.device = device;
  options.kv_dtype = kv_dtype;
  options.kv_disk_bytes = kv_disk.bytes;
  options.kv_disk_directory = kv_disk.directory;
  options.experts = experts.store;
  options.record_routing = experts.record_routing;
  return options;
}

absl::StatusOr<std::vector<float>> ScorePrompt(PipelineDriver& driver,
                                               std::vector<int32_t> prompt) {
  JobSpec spec;
  spec.prompt = std::move(prompt);
  spec.prompt_logits = true;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<JobHandle> job, driver.Submit(std::move(spec)));
  std::vector<float> logits;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const JobUpdate update, job->Next());
    logits.insert(logits.end(), update.logits.begin(), update.logits.end());
    if (update.finished) return logits;
  }
}

absl::StatusOr<std::vector<ScoredToken>> ReadPromptScores(JobHandle& job) {
  std::vector<ScoredToken> scores;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const JobUpdate update, job.Next());
    scores.insert(scores.end(), update.prompt_scores.begin(), update.prompt_scores.end());
    if (update.finished) return scores;
  }
}

absl::StatusOr<std::vector<int32_t>> ReadReply(JobHandle& job) {
  std::vector<int32_t> reply;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const JobUpdate update, job.Next());
    for (const ScoredToken& token : update.tokens) reply.push_back(token.token_id);
    if (update.finished) return reply;
  }
}

}  // namespace caravan
