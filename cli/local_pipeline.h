#ifndef CARAVAN_CLI_LOCAL_PIPELINE_H_
#define CARAVAN_CLI_LOCAL_PIPELINE_H_

// A whole pipeline inside this process: the coordinator's driver, and workers' stages joined by
// in-process channels. What `verify` and `eval` run on; the same code as a cluster, without its
// network.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "cli/device_flags.h"
#include "cli/expert_flags.h"
#include "cli/kv_disk_flags.h"
#include "coordinator/pipeline_driver.h"
#include "kernels/backend.h"
#include "kernels/cpu/row_ops.h"
#include "model/stage_spec.h"
#include "model/stored_model.h"
#include "worker/experts/expert_store.h"
#include "worker/stage.h"
#include "worker/step_loop.h"

namespace caravan {

/// Thread-safe: callers use driver().
class LocalPipeline {
 public:
  struct Options {
    int num_workers = 1;
    int num_threads = 1;          // of all workers together; 0: one a core
    int64_t prefill_chunk = 512;  // tokens
    int64_t context_tokens = 0;   // longest sequence; 0: as the model allows
    int64_t kv_tokens = 0;        // the KV caches hold; 0: one longest sequence
    // Memory of the process; all of it but memory_aside_bytes is shared out evenly to the workers.
    // Experts of a packed model that do not fit stay on its disk. 0: everything is in memory.
    int64_t memory_budget_bytes = 0;
    int64_t memory_aside_bytes = 0;
    std::string memory_aside_use;  // what for, in messages
    /// What one worker has of it.
    DeviceFlags DeviceOfWorker() const;
    /// Leaves half of the budgets, where there are any, to another model in this process.
    void LeaveHalf();
    DType kv_dtype = DType::kF32;
    // For KV blocks beyond what memory holds, of all workers together, shared out evenly.
    int64_t kv_disk_bytes = 0;
    std::string kv_disk_directory;
    bool speculate = false;  // the last worker drafts
    CpuIsa isa = CpuIsa::kAuto;
    DeviceFlags device;            // of all workers, which share its memory out evenly
    ExpertStore::Options experts;  // of those on disk
    std::string record_routing;    // prefix of the stages' files (RecordStage); empty: none
    // If set, called before each stage is made, from the last to the first, with its number and
    // what it is to be made of; returns the backend that it gets.
    std::function<std::unique_ptr<Backend>(size_t index, const StageSpec& spec,
                                           std::unique_ptr<Backend> backend,
                                           Stage::Options& options)>
        prepare_stage;
  };
  /// One stage at work.
  struct StageStats {
    StageSpec spec;
    v1::WorkerLoad load;
    int64_t kv_blocks = 0;
    int64_t kv_blocks_on_disk = 0;
    int expert_slots = 0;  // 0: no routed experts lie on disk
    ExpertStore::Counters experts;
  };

  /// What can be wrong with the options before anything is loaded.
  /// Errors: InvalidArgument - num_workers is not in [1, the model's layers], prefill_chunk < 1,
  ///         context_tokens is not in [0, the model's]; as CheckKvDType and KvDiskFlags::Check.
  static absl::Status CheckOptions(const StoredModel& model, const Options& options);

  /// Loads the model from `model`.
  /// Errors: as CheckOptions; InvalidArgument - `speculate` and the model has no layer for it;
  ///         OutOfRange - memory_budget_bytes are too few (says for what); as RecordStage and
  ///         Stage::Create.
  static absl::StatusOr<std::unique_ptr<LocalPipeline>> Create(const StoredModel& model,
                                                               const Options& options);
  ~LocalPipeline();

  PipelineDriver& driver() { return *driver_; }
  /// By stage.
  std::vector<StageStats> stages() const;
  /// That all KV caches hold.
  int64_t kv_tokens() const { return kv_tokens_; }

 private:
  LocalPipeline() = default;

  std::unique_ptr<PipelineDriver> driver_;
  struct Worker {
    const Stage* stage = nullptr;  // the loop's
    std::unique_ptr<StepLoop> loop;
  };
  std::vector<Worker> workers_;  // by stage
  int64_t kv_tokens_ = 0;
};

/// The options --model, --workers, --threads, --ram, --context, --isa and --kv and those of
/// DeviceFlags, KvDiskFlags and ExpertFlags, of the commands that run a pipeline of their own.
struct LocalPipelineFlags {
  std::string model;
  int workers = 1;
  int threads = 0;
  int64_t ram = 0;      // in bytes; 0: not given
  int64_t context = 0;  // tokens
  CpuIsa isa = CpuIsa::kAuto;
  DeviceFlags device;
  DType kv_dtype = DType::kF32;
  KvDiskFlags kv_disk;
  ExpertFlags experts;

  void AddTo(CLI::App& command);
  /// What else there is keeps its default.
  LocalPipeline::Options Options() const;
};

/// The logits of every position of `prompt`, f32 [prompt.size(), vocab_size].
/// Errors: as PipelineDriver::Submit and JobHandle::Next.
absl::StatusOr<std::vector<float>> ScorePrompt(PipelineDriver& driver, std::vector<int32_t> prompt);

/// Waits for the scores of prompt tokens 1, 2, ..., of a job with score_prompt.
/// Errors: as JobHandle::Next.
absl::StatusOr<std::vector<ScoredToken>> ReadPromptScores(JobHandle& job);

/// Waits for the whole reply: its tokens, the stop token included.
/// Errors: as JobHandle::Next.
absl::StatusOr<std::vector<int32_t>> ReadReply(JobHandle& job);

}  // namespace caravan

#endif  // CARAVAN_CLI_LOCAL_PIPELINE_H_
