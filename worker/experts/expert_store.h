#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_

// The routed experts of a stage that lie on disk, and the memory that some of them are in: a number
// of slots, taken at the start, into which experts are read when rows choose them. What is there is
// computed while the rest comes.
//
// Most slots (ExpertSlots) are the cache's, which keeps what is worth most (ExpertCache). Through
// the others experts pass: one that is read there leaves with its visit. They serve two ends. Where
// steps touch more than the cache holds each expert would put out the one that is needed next, so
// that nothing would ever be found; what the cache does not let in (ExpertCache::Use) passes. And
// what is guessed to come next is read to where it puts out nothing; it enters the cache, by the
// same rules as if it were read then, when a visit wants it.
//
// Where the experts lie on several disks, what one disk cannot give is read from another
// (ExpertReads), and only what none can give is an error.
//
// What comes next is known in a scan. Elsewhere the caller says what is likely (Guess); whether it
// should is decided by what that saves (GuessGate).
//
// A stage that goes leaves its slots to the next one of its worker (HeldExperts).
//
// Used by one thread, but for counters(). After Create it takes no memory but Warm's list of what
// to read, until that returns; the digits of a hash, while it is compared; and the text of errors.

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/io/read_queue.h"
#include "kernels/expert_batches.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/experts/cache_policy.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/expert_counters.h"
#include "worker/experts/expert_files.h"
#include "worker/experts/expert_key.h"
#include "worker/experts/expert_reads.h"
#include "worker/experts/expert_slots.h"
#include "worker/experts/guess_gate.h"
#include "worker/experts/guess_list.h"
#include "worker/experts/held_experts.h"

namespace caravan {

class ExpertStore {
 public:
  using Verify = ExpertReads::Verify;
  using Counters = ExpertCounters;

  /// When WantsGuess is true.
  enum class Guesses { kNever, kWhereTheyPay, kAlways };

  /// Those of its reads too; the memory of `reads` is the slots'.
  struct Options : ExpertReads::Options {
    std::string policy = "lfu";  // a name that MakeCachePolicy knows
    Guesses guesses = Guesses::kWhereTheyPay;
  };

  /// Called now and then while reading; false stops it.
  using Progress = std::function<bool(int64_t read_bytes, int64_t total_bytes)>;

  /// budget_bytes: of the slots. `held`: what a former stage of the model left, of which it takes
  /// all that it has a use and slots for. `source` is not used afterwards. REQUIRES: as
  /// ExpertFiles::Open.
  /// Errors: as ExpertFiles::Open, MakeCachePolicy and make_queue; FailedPrecondition - the budget
  /// has not the room
  ///         for as many experts as a token chooses: says how many bytes that is;
  ///         ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(
      const ModelConfig& config, const StageSpec& stage, const TensorSource& source,
      int64_t budget_bytes, const Options& options, HeldExperts held = {});
  /// Ends all reads, waiting for those that have begun, and leaves what lies in the cache and was
  /// right, with its memory. REQUIRES: nobody uses its queue.
  static HeldExperts Release(std::unique_ptr<ExpertStore> store);
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  /// A faster tier, looked at until the last visit: what has a slot there is not guessed, nor
  /// warmed where not all experts fit.
  void SetUpperTier(const ExpertCache& upper) { upper_ = &upper; }

  /// What Warm reads: all experts, if the slots hold them all; else those of the highest scores in
  /// cache(), as many as its slots, of those that have one. None of the layers that the former
  /// stage had too: what it had no use for can wait until somebody has.
  int64_t warm_bytes() const;
  /// Reads that, in file order. Where it is not called, be there anything to read or not, or does
  /// not come to its end, the next stage still has these layers to warm (Release). Errors: as
  /// Visit, where all are read; else what cannot be read is left out, which a warning says.
  /// Cancelled - by `progress`.
  absl::Status Warm(const Progress& progress);

  using TakeExpert = absl::FunctionRef<absl::Status(ExpertKey key, const FfnWeights& weights)>;
  /// Reads these and hands them out, each while it lies in its slot. keys: ascending. What cannot
  /// be read is left out, with a warning, unless is_needed. Errors: that of `take`; Cancelled - by
  /// `progress`; as Visit.
  absl::Status Read(absl::Span<const ExpertKey> keys, bool is_needed, TakeExpert take,
                    const Progress& progress);

  /// A layer's experts for rows that chose these: expert_ids and weights [rows, k]. Begins to read
  /// what is not in memory. The result is good until the next visit.
  /// Its errors: DataLoss - an expert could not be read, or is not what was packed, in all copies;
  /// with the layer, the expert and the last one's file. The visit is over then, and that expert is
  /// not in memory; later visits try again.
  ExpertBatches& Visit(int layer, absl::Span<const int32_t> expert_ids,
                       absl::Span<const float> weights);

  /// Whether it is worth the caller's while to find out what a step's rows are likely to choose in
  /// `layer`, the next one that they visit: after the step's visit of the layer before, if any.
  bool WantsGuess(int layer);
  /// They are likely to choose these; to find that out took so long. Begins to read them, behind
  /// all that is needed, as far as there are free slots. REQUIRES: WantsGuess(layer) just was true.
  void Guess(int layer, absl::Span<const int32_t> expert_ids, absl::Span<const float> weights,
             absl::Duration took);

  /// For what was learned in earlier runs, and is for later ones (expert_heat.h): between visits.
  ExpertCache& cache() { return slots_.cache(); }
  /// Of the last visit; -1: there was none.
  int64_t step() const { return step_; }

  /// What it reads its disks with, for others who read them too. Lives as long as this object.
  ReadQueue& queue() { return reads_->queue(); }

  int num_slots() const { return slots_.size(); }
  int64_t num_bytes() const { return reads_->num_bytes(); }
  /// Where the slots lie, [num_bytes].
  std::byte* memory() const { return reads_->memory(); }
  const ExpertFiles& files() const { return *files_; }

  /// Thread-safe.
  Counters counters() const { return meter_.Read(); }

 private:
  /// What Warm reads, ascending.
  std::vector<ExpertKey> WarmKeys() const;
  int64_t BytesOf(absl::Span<const ExpertKey> keys) const;
  bool HoldsAll() const { return num_slots() == files_->num_experts(); }

  /// An expert that the visit needs.
  struct Need {
    int32_t expert = 0;
    int64_t rows = 0;
    float weight = 0;  // summed over them
    double score = 0;  // with which it asks for a slot of the cache
    int slot = -1;     // that the visit wants for it; -1: none
    bool given = false;
  };

  class Batches : public ExpertBatches {
   public:
    explicit Batches(ExpertStore& store) : store_(store) {}
    absl::StatusOr<absl::Span<const LoadedExpert>> Next() override { return store_.Next(); }
    bool ascending() const override { return store_.ascending_; }

   private:
    ExpertStore& store_;
  };

  /// What GuessGate wants to know of a step.
  struct StepCosts {
    bool counts = false;  // it could have guessed, and did not scan
    absl::Duration lost;
    int64_t brought = 0;
  };

  ExpertStore(std::unique_ptr<ExpertFiles> files, int num_slots, int num_passed,
              std::unique_ptr<CachePolicy> policy, const Options& options);

  /// Where `layer` belongs to another step than the last visit, ends that.
  void EnterStep(int layer);

  // What a visit does.
  void CountNeeds(absl::Span<const int32_t> expert_ids, absl::Span<const float> weights);
  void BeginVisit();
  absl::StatusOr<absl::Span<const LoadedExpert>> Next();
  absl::Status FillBatch();
  void ReleaseBatch();
  /// Lets go of all that the visit wants.
  void EndVisit();

  // Reads.
  /// Gives slots to what the visit needs, as far as there are. Whether all has one.
  bool BeginNeeded();
  /// A slot to read this into; -1: none at this time.
  int TakeFor(const Need& need);
  void BeginGuesses();
  /// Whether something can be read that nobody needs, and puts out nothing.
  bool HasRoomForGuess() const;
  /// The expert that is likely to be needed next and has no slot: the one place that guesses.
  std::optional<ExpertKey> NextGuess();
  /// Takes back what was guessed, passes, and is not wanted.
  void DropGuesses();
  void MakeRoom();
  void BeginRead(int slot, ExpertKey key, ReadPriority priority);
  /// Reads another copy of what is wanted and was read badly; false: all were tried.
  bool ReadOtherCopy(int slot);
  /// Errors: that of a read of something wanted.
  absl::Status CollectReads();
  /// May begin to read another copy. REQUIRES: it is ready, and wanted.
  absl::Status CheckBytes(int slot);

  bool IsInUpperTier(ExpertKey key) const {
    return upper_ != nullptr && upper_->Find(key).has_value();
  }

  const std::unique_ptr<ExpertFiles> files_;
  const Guesses guess_when_;
  const ExpertCache* upper_ = nullptr;
  ExpertMeter meter_;
  ExpertSlots slots_;
  std::vector<int> stayed_layers_;  // ascending: those that the former stage had too
  bool is_warm_ = false;            // Warm came to its end

  // The visit.
  Batches batches_{*this};
  int layer_ = std::numeric_limits<int>::max();  // of the last one
  int64_t step_ = -1;
  bool is_scan_ = false;
  bool ascending_ = true;
  std::vector<Need> tally_;         // by expert
  std::vector<Need> needs_;         // ascending
  std::vector<size_t> read_order_;  // of needs_
  size_t num_given_ = 0;
  std::vector<LoadedExpert> batch_;
  std::vector<size_t> batch_needs_;  // of needs_
  GuessList guesses_;
  GuessGate gate_;
  StepCosts step_costs_;

  std::unique_ptr<ExpertReads> reads_;  // last, so that it ends first
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_
