#ifndef CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_
#define CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_

// The routed experts of a stage that computes on a card too small for them all. Some lie in the
// card's memory, in slots taken at the start, and are computed there; the others are ExpertStore's,
// in the host's memory or on disk. Of those that rows chose, each is computed by the CPU where it
// lies, or copied to the card and computed there, whichever is done sooner by the costs measured on
// this box (ExpertCosts), while the card computes its own.
//
// Most slots are a cache's, by the store's policy (ExpertCache). What the CPU computes is copied
// there meanwhile, if it is worth more than what it puts out. Through the other slots experts pass.
//
// Three sums come together in this order: the card's own experts, those copied for this visit, the
// CPU's; each in ascending order of expert. So results depend on where experts lie, in their last
// digits; for fixed places on nothing else.
//
// Used by one thread, but for counters(). Of a visit's two halves, Begin waits for what the card
// was asked for before, Run for the copies, the CPU and, where that had something to do, the card.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "kernels/backend.h"
#include "kernels/copy_queue.h"
#include "kernels/expert_batches.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/expert_costs.h"
#include "worker/experts/expert_key.h"
#include "worker/experts/expert_store.h"

namespace caravan {

class CardExperts {
 public:
  struct Options {
    int64_t budget_bytes = 0;  // of the card's memory, for the slots
    std::string policy = "lfu";
    int64_t max_rows = 0;  // of a visit
  };

  /// Of experts that visits needed.
  struct Counters {
    int64_t hits = 0;        // computed where they lay, in the card's memory
    int64_t copies = 0;      // copied and computed there
    int64_t on_cpu = 0;      // computed by the CPU
    int64_t promotions = 0;  // of those: copied meanwhile, for later visits
    int64_t copied_bytes = 0;
    // Of visits that the CPU shared: how long Run took until its sum was on the card, and what the
    // costs foretold.
    absl::Duration took;
    absl::Duration foretold;
  };

  /// All are borrowed; `store` then neither warms nor guesses what has a slot here.
  /// Errors: FailedPrecondition - the budget holds no two experts; as MakeCachePolicy,
  ///         Memory::Allocate and MakeCopyQueue.
  static absl::StatusOr<std::unique_ptr<CardExperts>> Create(const ModelConfig& config,
                                                             ExpertStore& store, Backend& card,
                                                             Backend& cpu, const Options& options);

  /// Measures the costs, of experts of the first layer, which takes a second or two. Errors: as
  /// ExpertStore::Visit and of the backends.
  absl::StatusOr<ExpertCosts> MeasureCosts();
  /// What visits are split by. Until then the CPU computes what is not on the card.
  void SetCosts(ExpertCosts costs) { costs_ = std::move(costs); }
  const ExpertCosts& costs() const { return costs_; }

  /// What Warm reads: as many experts as the cache has slots.
  int64_t warm_bytes() const;
  /// Fills the cache: with those of the highest scores, of equal ones the first in the file.
  /// Errors: as ExpertStore::Read.
  absl::Status Warm(const ExpertStore::Progress& progress);

  /// A layer's rows chose these: expert_ids and weights [num_rows, k], the host's; x [num_rows,
  /// hidden_size], the card's. Begins to read what is on disk.
  /// Errors: as Memory::CopyIn and CopyOut.
  absl::Status Begin(int layer, absl::Span<const int32_t> expert_ids,
                     absl::Span<const float> weights, int64_t num_rows, const float* x);
  /// out += what Backend::RoutedExperts adds. x and weights, the card's, as in Begin.
  /// Errors: as ExpertBatches::Next and Memory::CopyOut; `out` is then of no use.
  absl::Status Run(const float* x, const float* weights, float* out);

  /// For what was learned in earlier runs, and is for later ones: it sees all uses.
  ExpertCache& cache() { return cache_; }
  /// Of the last visit; -1: there was none.
  int64_t step() const { return step_; }
  int num_slots() const { return num_cached_ + num_passed_; }

  /// Thread-safe.
  Counters counters() const;

 private:
  /// An expert that the visit needs.
  struct Need {
    int32_t expert = 0;
    int64_t rows = 0;
    float weight = 0;  // summed over them
    double score = 0;  // as ExpertCache::Use says
    int slot = -1;     // where it lies, or is copied to; -1: nowhere
    bool is_hit = false;
    ExpertPlace place = ExpertPlace::kCpu;  // if it is no hit
    bool copied = false;
    bool in_round = false;  // of copies that the card computes together
  };

  /// Gives the CPU its experts as the store has them, and copies what is to be copied.
  class CpuBatches : public ExpertBatches {
   public:
    explicit CpuBatches(CardExperts& experts) : experts_(experts) {}
    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override { return experts_.NextForCpu(); }
    bool ascending() const override { return experts_.missing_->ascending(); }

   private:
    CardExperts& experts_;
  };

  CardExperts(const ModelConfig& config, ExpertStore& store, Backend& card, Backend& cpu,
              const ExpertCache::Shape& shape, int num_passed, std::unique_ptr<CachePolicy> policy,
              int64_t slot_bytes, std::unique_ptr<CopyQueue> copies);

  absl::Status TakeMemory(const Options& options);
  std::byte* MemoryOf(int slot) const { return slots_.data() + slot * slot_bytes_; }
  bool IsPassed(int slot) const { return slot >= num_cached_; }
  /// Lets go of all that the visit holds.
  void EndVisit();
  void CountNeeds(absl::Span<const int32_t> expert_ids, absl::Span<const float> weights);
  /// Where each need is computed, and what is copied for later.
  void PlaceNeeds();
  void Promote();
  /// For a slot of the cache: no more than its score, and of a scan what ExpertCache::Use says.
  double WorthOf(const Need& need) const {
    return std::min(need.score, cache_.score({layer_, need.expert}));
  }
  Need& NeedOf(int32_t expert) {
    return needs_[static_cast<size_t>(need_of_[static_cast<size_t>(expert)])];
  }
  using IsOurs = absl::FunctionRef<bool(const Need& need)>;
  /// masked: ids_, those of other needs than `is_ours` takes kNotHere.
  void MaskIds(IsOurs is_ours, std::vector<int32_t>& masked);
  /// The same on the card.
  absl::Status MaskIds(IsOurs is_ours, const Array& masked);

  absl::StatusOr<absl::Span<const LoadedExpert>> NextForCpu();
  absl::Status BeginCopy(const FfnWeights& weights, int slot);
  absl::Status WaitForCopies();
  /// Has the card compute what was copied since the last call.
  absl::Status RunCopied();
  absl::Status RunOnCard(std::vector<LoadedExpert> experts, const Array& ids);

  const ModelConfig config_;  // a copy: the one that Create was given may be gone by now
  ExpertStore& store_;
  Backend& card_;
  Backend& cpu_;
  const int64_t slot_bytes_;
  const int num_cached_;
  const int num_passed_;
  ExpertCache cache_;
  ExpertCosts costs_ = {.points = {{.rows = 1}}, .copy_seconds = 1};
  Array slots_;                         // [num_slots] of slot_bytes_
  std::vector<FfnWeights> weights_of_;  // by slot: what lies there
  const std::unique_ptr<CopyQueue> copies_;

  // The visit.
  int layer_ = -1;
  int64_t step_ = -1;
  int64_t num_rows_ = 0;
  std::vector<Need> needs_;   // ascending
  std::vector<int> need_of_;  // by expert; -1: none
  ExpertSplit split_;
  ExpertBatches* missing_ = nullptr;      // the store's; null: nothing is missing
  bool copying_ = false;                  // and not waited for
  absl::Span<const LoadedExpert> given_;  // by the store, and not looked at
  std::vector<LoadedExpert> cpu_batch_;
  std::vector<LoadedExpert> copied_;  // and not computed
  int next_passed_ = 0;               // slot
  std::vector<int32_t> ids_;          // [rows, k]
  std::vector<int32_t> cpu_ids_;      // [rows, k]
  std::vector<int32_t> scratch_ids_;  // [rows, k]
  std::vector<float> host_weights_;   // [rows, k]
  std::vector<float> x_copy_;         // [rows, hidden_size], where the host cannot read the card's
  absl::Span<const float> host_x_;
  std::vector<float> cpu_sum_;  // [rows, hidden_size]
  Array hit_ids_;               // i32 [rows, k]
  Array copied_ids_;            // i32 [rows, k]
  Array card_cpu_sum_;          // f32 [rows, hidden_size]
  const float* x_ = nullptr;    // of Run
  const float* weights_ = nullptr;
  float* out_ = nullptr;

  mutable Mutex mu_;
  Counters counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_
