#ifndef CARAVAN_CLUSTER_STAGE_NEEDS_H_
#define CARAVAN_CLUSTER_STAGE_NEEDS_H_

// What memory stages take of workers: the planner's rules (planner.h), of which splits by memory
// and by time are made. Pure functions.

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"
#include "base/dtype.h"
#include "cluster/planner.h"
#include "model/layer_cost.h"
#include "model/stage_spec.h"

namespace caravan {

/// All stages that a model has, and what they cost.
class PossibleStages {
 public:
  explicit PossibleStages(const ModelCost& cost);

  int num_layers() const { return num_layers_; }
  /// The stage with layers [begin, end).
  StageSpec Spec(int begin, int end) const {
    StageSpec spec = StageOf(begin, end, num_layers_);
    spec.drafts = spec.has_head && drafts_;
    return spec;
  }
  const LayerCost& Of(int begin, int end) const {
    // Stages that begin at 0, then those at 1, ...
    const int64_t before = int64_t{begin} * num_layers_ - int64_t{begin} * (begin - 1) / 2;
    return costs_[static_cast<size_t>(before + end - begin - 1)];
  }

 private:
  const int num_layers_;
  const bool drafts_;
  std::vector<LayerCost> costs_;
};

inline constexpr int64_t kMaxTokens = int64_t{1}
                                      << 40;  // past any memory; times bytes fits 63 bits

/// Of a KV cache of so many tokens, each of which takes whole blocks of its format.
int64_t KvCacheBytes(const LayerCost& stage, DType dtype, int64_t tokens);
/// How many tokens so many bytes of KV cache hold.
int64_t KvTokens(const LayerCost& stage, DType dtype, int64_t bytes);

/// The least memory that a stage needs of its worker, in bytes.
struct StageNeed {
  bool offloads = false;
  int64_t weights = 0;  // all, or the always-active ones
  int64_t kv = 0;       // of one longest sequence
  int64_t slots = 0;    // of as many experts as it cannot do without
  int64_t beside = 0;   // process and steps

  int64_t total() const { return weights + kv + slots + beside; }
};

/// What a stage may take of a worker that it fits.
struct StageRoom {
  int64_t kv_bytes = 0;
  int64_t kv_disk_bytes = 0;
  int64_t kv_tokens = 0;     // that these hold; at most kMaxTokens
  int64_t expert_slots = 0;  // of stages that offload
};

/// What stages need of some workers. Borrows all that it is given.
class StageNeeds {
 public:
  enum class Order {
    kGiven,  // each worker has a stage, in this order
    kAny,    // some have, in any order: what depends on that is counted as if it took most
  };
  StageNeeds(const PossibleStages& stages, const PlannerOptions& options,
             absl::Span<const PlannerWorker* const> workers, bool may_offload,
             Order order = Order::kGiven);

  int num_workers() const { return static_cast<int>(workers_.size()); }
  const PlannerWorker& worker(int w) const { return *workers_[static_cast<size_t>(w)]; }
  const PossibleStages& stages() const { return stages_; }
  const PlannerOptions& options() const { return options_; }

  /// As it would fit the worker: resident if it does, else offloading where that can be and needs
  /// less.
  StageNeed Of(int w, int begin, int end) const;
  bool Fits(int w, int begin, int end) const {
    return Of(w, begin, end).total() <= worker(w).memory_budget_bytes;
  }

  /// What the stage gets of the worker where all of a pipeline's stages cache `most_tokens` at
  /// least; what is beyond those goes to slots. REQUIRES: it fits.
  StageRoom RoomFor(int w, int begin, int end, int64_t most_tokens = kMaxTokens) const;

 private:
  StageNeed Resident(int w, int begin, int end) const;
  int64_t StepBytes(int w, int begin, int end) const;

  const PossibleStages& stages_;
  const PlannerOptions& options_;
  const absl::Span<const PlannerWorker* const> workers_;
  const bool may_offload_;
  std::vector<bool> hops_by_nccl_;  // whether a neighbour may be joined so, by worker
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_STAGE_NEEDS_H_
