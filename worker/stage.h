#ifndef CARAVAN_WORKER_STAGE_H_
#define CARAVAN_WORKER_STAGE_H_

// One stage at work: takes a step, runs its layers over the KV blocks that the step names, and
// leaves in the step what the next hop needs.
//
// Used by one thread at a time.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/pipeline_plan.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/experts/card_experts.h"
#include "worker/experts/expert_store.h"
#include "worker/experts/heat_keeper.h"
#include "worker/experts/held_experts.h"
#include "worker/experts/routing_observer.h"
#include "worker/hidden_slots.h"
#include "worker/kv_archive.h"
#include "worker/kv_cache.h"
#include "worker/layer.h"
#include "worker/mtp_drafter.h"
#include "worker/output_head.h"
#include "worker/sequence_table.h"
#include "worker/stage_weights.h"

namespace caravan {

/// A step in a worker.
struct HopStep {
  v1::Step step;
  // One of the stage's slots: where its hidden states are computed, and where they lie before or
  // after if step.activations_by_nccl is set. Empty: they are not wanted.
  Array hidden;
};

class Stage {
 public:
  struct Options {
    std::string name;             // for errors: "worker 2 (box-b)"
    int64_t kv_budget_bytes = 0;  // memory of the stage's KV cache
    // For more of it on the disk of kv_disk_directory; 0 where the backend's memory is not the
    // host's.
    int64_t kv_disk_bytes = 0;
    std::string kv_disk_directory;
    KvArchive::Place kv_archive;  // for full blocks that outlive the stage
    DType kv_dtype = DType::kF32;
    int64_t max_step_tokens = 0;  // rows that one step may carry
    // Where others than the stage put hidden states into slots, or take them from there: how many
    // there are, and whether a step leaves with its own in its slot.
    int hidden_slots = 1;
    bool leaves_hidden = false;
    // Memory for routed experts, in slots of one each (LayerCost::expert_slot_bytes); the others
    // stay in the packed model that `source` is, and are read as steps want them. 0: all are in
    // memory.
    int64_t expert_budget_bytes = 0;
    ExpertStore::Options experts;  // how those on disk are read and kept
    // Where the backend computes on a card, with a budget of experts: what it has for them of its
    // own memory (CardExperts), and the backend of the others, which are in the host's. REQUIRES:
    // both are set then (SplitExpertBudget).
    int64_t card_expert_bytes = 0;
    std::shared_ptr<Backend> cpu;
    // Directory of the files of what is learned about those on disk (HeatKeeper) and of what they
    // cost here (expert_cost_file.h); empty: where they lie themselves. nullopt: nothing is kept,
    // and the stage begins cold.
    std::optional<std::string> expert_heat;
    uint64_t model_fingerprint = 0;  // for that file
    // Parts of the weights that are in the host's memory already, for a backend that computes
    // there; null: none are. Create adds what it reads, also where no stage comes of it.
    std::shared_ptr<WeightParts> held;
    // What a former stage left of its experts on disk, which Create takes; null: there was none.
    // Of another model it is of no use. Where no stage comes of it, Create leaves there what is
    // held then.
    std::shared_ptr<HeldExperts> held_experts;
    // Is shown what the routers choose, by whoever calls Run; null: nobody. Let go by Finish.
    std::shared_ptr<RoutingObserver> routing;
  };

  /// Loads the stage's weights from `source`, which is not used afterwards.
  /// Errors: InvalidArgument - no such stage, or KV blocks on disk beside a card; as CheckKvDType,
  ///         StageWeights::Load, KvCache::Create and Memory::Allocate; with a
  ///         budget of experts, as ExpertStore::Create and Warm, and those of CardExperts.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(const ModelConfig& config,
                                                       const StageSpec& spec,
                                                       const TensorSource& source,
                                                       std::unique_ptr<Backend> backend,
                                                       const Options& options,
                                                       const StageWeights::Progress& progress);
  /// As Finish.
  ~Stage();

  /// Archives, restores and copies the blocks that the step says, then runs its slices: from token
  /// ids or activations to activations or results. A step that cannot be run (see CheckStep)
  /// touches no block and comes back with `error` set, and with neither; one that comes with
  /// `error` passes untouched. A step whose experts cannot be read comes back with `error` too, but
  /// has written its rows into the blocks of some layers; and one whose blocks cannot be restored
  /// (NotFound), with some of these filled.
  ///
  /// With several slots nothing that was asked of the backend is under way when this returns.
  /// REQUIRES: in.hidden is a slot, unless the step has an error or no slices.
  HopStep Run(HopStep in);
  /// The same in a slot that is free, for steps that come with their activations. REQUIRES:
  /// !leaves_hidden.
  v1::Step Run(v1::Step step);

  /// Any thread.
  HiddenSlots& slots() { return *slots_; }
  /// Of so many rows' hidden states.
  int64_t HiddenBytes(int64_t num_rows) const;

  /// After Run, when its step has been sent on: what nobody waits for.
  void AfterStep();

  /// Ends what is written for later: expert heat, recorded routing. Run is not called afterwards.
  /// Idempotent.
  void Finish();

  /// What is held of its experts on disk, for the next stage: nothing where there are none. As
  /// Finish, and it takes the stage apart: of what it had, weights, slots and archive stay.
  HeldExperts ReleaseExperts();

  /// Looks anew for blocks that outlive stages: others may have added some since it was made.
  /// Without an archive, with a warning, where that cannot be opened.
  void OpenArchive(KvArchive::Place place);
  /// As KvArchive::SetReplica; nothing without an archive. Any thread, one at a time, but not
  /// beside OpenArchive.
  void SetReplica(const KvArchive::Place& place);

  /// Whether its card failed in a way that leaves it of no use to this process: what a step's error
  /// of code Internal says there.
  bool card_is_lost() const { return card_is_lost_; }

  const StageSpec& spec() const { return spec_; }
  const KvCache& kv_cache() const { return *kv_cache_; }
  /// Null: no block outlives the stage.
  const KvArchive* kv_archive() const { return kv_archive_.get(); }
  /// Run waits for no other worker any more: what it would fetch is missing. Any thread.
  void StopFetching();
  const StageWeights& weights() const { return *weights_; }
  /// What it takes of its card's memory; 0: it computes in the host's.
  int64_t card_bytes() const { return backend_->memory().taken_bytes(); }
  /// Null: the routed experts are resident, or there are none. Its counters may be read by any
  /// thread.
  const ExpertStore* experts() const { return experts_.get(); }
  /// Null: the routed experts are all in the memory that the stage computes in. As experts().
  const CardExperts* card_experts() const { return card_experts_.get(); }

 private:
  Stage(const ModelConfig& config, const StageSpec& spec, std::unique_ptr<Backend> backend,
        std::unique_ptr<StageWeights> weights, std::unique_ptr<ExpertStore> experts,
        std::unique_ptr<CardExperts> card_experts, std::unique_ptr<HeatKeeper> heat,
        std::unique_ptr<KvCache> kv_cache, const Options& options);

  /// What running steps takes, beside weights and KV cache.
  absl::Status TakeMemory();
  absl::Status Apply(v1::Step& step);
  absl::Status MoveBlocks(const v1::Step& step);
  absl::Status Check(const v1::Step& step) const;
  /// Fills hidden_ [num_rows, hidden_size] from the step.
  absl::Status TakeInput(const v1::Step& step);
  absl::Status RunLayers(const v1::Step& step);
  absl::Status RunEachLayer(SequenceTable& table);

  /// Ten steps of the usual shapes, of which nothing is kept: a card has then loaded what it
  /// launches, and what is repeated is ready (Backend::Repeat). Where somebody is shown the
  /// routers' choices they make none: experts that are not all in the card's memory were run when
  /// their costs were measured. Errors: as steps'; Cancelled - go_on, asked after each, said so.
  absl::Status Rehearse(absl::FunctionRef<bool()> go_on);
  /// As many rows as the KV cache has room for, of one sequence or of one each.
  v1::Step MadeUpStep(int64_t num_rows, bool one_sequence) const;

  const ModelConfig config_;
  const StageSpec spec_;
  Options options_;
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<StageWeights> weights_;
  std::unique_ptr<ExpertStore> experts_;
  std::unique_ptr<CardExperts> card_experts_;
  const std::unique_ptr<HeatKeeper> heat_;  // null: nothing is kept
  std::unique_ptr<KvCache> kv_cache_;       // null: see ReleaseExperts
  std::unique_ptr<KvArchive> kv_archive_;   // null: there is none
  bool card_is_lost_ = false;
  bool is_rehearsal_ = false;
  std::unique_ptr<LayerRunner> layer_runner_;
  std::unique_ptr<OutputHead> head_;     // if the stage has the head
  std::unique_ptr<MtpDrafter> drafter_;  // if the stage drafts
  Array ids_;  // i32 [max_step_tokens], where the backend cannot read the host's
  std::unique_ptr<HiddenSlots> slots_;
  Array hidden_;  // that of the step that is run: f32 [max_step_tokens, hidden_size]
};

/// For a stage on a card whose plan leaves experts out of its memory: options.expert_budget_bytes,
/// which the plan means of the card, becomes card_expert_bytes, and what the CPU's part of steps
/// leaves of ram_bytes becomes the budget of the host's. `cpu`: of what is computed there.
/// Errors: FailedPrecondition - steps leave nothing (says how much they take).
absl::Status SplitExpertBudget(const ModelConfig& config, const StageSpec& spec, int64_t ram_bytes,
                               std::shared_ptr<Backend> cpu, Stage::Options& options);

}  // namespace caravan

#endif  // CARAVAN_WORKER_STAGE_H_
