#ifndef CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_
#define CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_

// The routed experts of a stage that computes on a card too small for them all. Some lie in the
// card's memory, in slots taken at the start, and are computed there; the others are ExpertStore's,
// in the host's memory or on disk. Of those that rows chose, each is computed by the CPU where it
// lies, or copied to the card and computed there, whichever is done sooner by the costs measured on
// this box (ExpertCosts), while the card computes its own.
//
// Most slots are a cache's, by the store's policy (ExpertCache). What the CPU computes is copied
// there meanwhile, if it is worth more than what it puts out. Through the other slots experts pass,
// in two halves: while those in one are computed, those of the other are copied. The card is asked
// for all of that before the CPU begins, and the host waits for none of it until the CPU is done.
//
// Three sums come together in this order: the card's own experts, those copied for this visit, the
// CPU's; each in ascending order of expert. So results depend on where experts lie, in their last
// digits; for fixed places on nothing else.
//
// Used by one thread, but for counters(). Of a visit's two halves, Begin waits for what the card
// was asked for before, Run for the copies, the CPU and, where that had something to do, the card.
// Where experts come from disk by and by, in whatever order, those that are copied are computed at
// the end of the visit, so that their order is kept.

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
#include "kernels/expert_batches.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/experts/card_slots.h"
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

  /// One that is kept, and two through which experts pass.
  static constexpr int kLeastSlots = 3;

  /// Of experts that visits needed.
  struct Counters {
    int64_t hits = 0;        // computed where they lay, in the card's memory
    int64_t copies = 0;      // copied and computed there
    int64_t on_cpu = 0;      // computed by the CPU
    int64_t promotions = 0;  // of those: copied meanwhile, for later visits
    int64_t copied_bytes = 0;
    // Of visits that the CPU shared: how long Run took, and what the costs foretold.
    absl::Duration took;
    absl::Duration foretold;
  };

  /// All are borrowed; `store` then neither warms nor guesses what has a slot here.
  /// Errors: FailedPrecondition - the budget does not hold kLeastSlots experts; as MakeCachePolicy
  ///         and CardSlots::Create.
  static absl::StatusOr<std::unique_ptr<CardExperts>> Create(const ModelConfig& config,
                                                             ExpertStore& store, Backend& card,
                                                             Backend& cpu, const Options& options);

  /// Measures the costs, of experts of the first layer; before Warm, as it overwrites slots.
  /// Errors: as ExpertCostMeter.
  absl::StatusOr<ExpertCosts> MeasureCosts();
  /// All that they depend on, in words: the same for any layers whose first one is alike.
  std::string CostsDependOn() const;
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
    int slot = -1;     // where it lies, or is copied to; -1: nowhere, or not yet known
    bool is_hit = false;
    ExpertPlace place = ExpertPlace::kCpu;  // if it is no hit
    bool copied = false;                    // or being copied
    bool is_due = false;                    // among due_
  };

  /// Gives the CPU its experts as the store has them, and has the card told of what is copied.
  class CpuBatches : public ExpertBatches {
   public:
    explicit CpuBatches(CardExperts& experts) : experts_(experts) {}
    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override { return experts_.NextForCpu(); }
    bool ascending() const override { return experts_.is_ordered_; }

   private:
    CardExperts& experts_;
  };

  /// Gives the card what is due, as it is copied.
  class CopiedBatches : public ExpertBatches {
   public:
    explicit CopiedBatches(CardExperts& experts) : experts_(experts) {}
    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override { return experts_.NextCopied(); }
    bool ascending() const override { return true; }

   private:
    CardExperts& experts_;
  };

  CardExperts(const ModelConfig& config, ExpertStore& store, Backend& card, Backend& cpu,
              const ExpertCache::Shape& shape, int num_passed, std::unique_ptr<CachePolicy> policy,
              int64_t max_rows);

  absl::Status TakeMemory();
  bool IsPassed(int slot) const { return slot >= num_cached_; }
  Need& NeedOf(int32_t expert) {
    return needs_[static_cast<size_t>(need_of_[static_cast<size_t>(expert)])];
  }

  // Begin.
  /// needs_, and which of them are hits.
  void CountNeeds(absl::Span<const int32_t> expert_ids, absl::Span<const float> weights);
  /// Begins a visit of the store's with all others.
  void VisitMissing(absl::Span<const int32_t> expert_ids, absl::Span<const float> weights);
  /// Where each of those is computed, and what is copied for later.
  void PlaceMissing();
  void Promote(const ExpertSplit& split);
  double Foretell() const;
  /// For a slot of the cache: no more than its score, and of a scan what ExpertCache::Use says.
  double WorthOf(const Need& need) const {
    return std::min(need.score, cache_.score({layer_, need.expert}));
  }
  /// Appends ids_, with kNotHere for those of other needs than `is_ours` takes.
  void AppendMask(absl::FunctionRef<bool(const Need& need)> is_ours, std::vector<int32_t>& masks);
  absl::Status MaskToCard(absl::Span<const int32_t> masks, int32_t* to);

  // Run.
  absl::Status RunHits();
  absl::Status RunMissing();
  absl::StatusOr<absl::Span<const LoadedExpert>> NextForCpu();
  /// cpu_batch_: the CPU's part of what the store gives next; empty: that was all. The rest is
  /// copied.
  absl::Status FillCpuBatch();
  absl::Status TakeGiven(absl::Span<const LoadedExpert> given);
  /// Asks the card for what is due.
  absl::Status RunDue();
  absl::StatusOr<absl::Span<const LoadedExpert>> NextCopied();
  absl::Status RunOnCard(ExpertBatches& experts, const int32_t* ids);
  absl::Status AddCpuSum();
  void Count(absl::Duration took);
  /// Lets go of all that the visit holds.
  void EndVisit();

  const ModelConfig config_;  // a copy: the one that Create was given may be gone by now
  ExpertStore& store_;
  Backend& card_;
  Backend& cpu_;
  const int64_t max_rows_;
  const int num_cached_;
  const int num_passed_;  // even
  ExpertCache cache_;
  ExpertCosts costs_ = {.points = {{.rows = 1}}, .copy_seconds = 1};
  std::vector<float> x_copy_;         // [max_rows, hidden_size]
  std::vector<float> cpu_sum_;        // [max_rows, hidden_size]
  std::unique_ptr<CardSlots> slots_;  // those of the cache first; after what it pins

  // The visit.
  int layer_ = -1;
  int64_t step_ = -1;
  int64_t num_rows_ = 0;
  std::vector<Need> needs_;           // ascending
  std::vector<int> need_of_;          // by expert; -1: none
  ExpertBatches* missing_ = nullptr;  // the store's; null: nothing is missing
  size_t num_missing_ = 0;
  size_t num_copied_ = 0;    // of those: computed on the card
  bool is_ordered_ = false;  // the store gives them in order of id
  double foretold_seconds_ = 0;
  size_t num_given_ = 0;    // by the store
  bool has_batch_ = false;  // cpu_batch_ waits to be given
  std::vector<LoadedExpert> cpu_batch_;
  std::vector<LoadedExpert> due_;    // to be copied, or that are, and to be computed on the card
  size_t num_begun_ = 0;             // of due_
  std::vector<LoadedExpert> group_;  // of due_: those that are copied and computed together
  int next_half_ = 0;                // of the slots through which experts pass
  std::vector<int32_t> ids_;         // [rows, k]
  std::vector<int32_t> cpu_ids_;     // [rows, k]
  std::vector<int32_t> masks_;       // [2, rows, k]
  std::vector<float> host_weights_;  // [rows, k]
  absl::Span<const float> host_x_;
  Array card_ids_;            // i32 [2, rows, k]: of hits, of what is copied
  Array card_cpu_sum_;        // f32 [rows, hidden_size]
  const float* x_ = nullptr;  // of Run
  const float* weights_ = nullptr;
  float* out_ = nullptr;

  mutable Mutex mu_;
  Counters counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_CARD_EXPERTS_H_
