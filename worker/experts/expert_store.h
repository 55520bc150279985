#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_

// The routed experts of a stage that lie on disk, and the memory that some of them are in: a number
// of slots, taken at the start, into which experts are read when rows choose them. What is there is
// computed while the rest comes.
//
// Most slots are the cache's, which keeps what is worth most (ExpertCache). Through the others
// experts pass: one that is read there leaves with its visit. They serve two ends. A visit that
// touches most experts of a layer is part of a scan over all of them, in which each would put out
// the one that is needed next, so that nothing would ever be found; there an expert enters the
// cache only where it was worth more before the visit than what gives way to it. And what is
// guessed to come next is read to where it puts out nothing.
//
// Used by one thread, but for counters(). After Create it takes no memory.

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/buffer.h"
#include "base/io/read_queue.h"
#include "base/mutex.h"
#include "kernels/expert_batches.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/experts/cache_policy.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/expert_files.h"
#include "worker/experts/expert_key.h"

namespace caravan {

class ExpertStore {
 public:
  /// When the bytes of an expert that was read are compared with their hash.
  enum class Verify { kNever, kFirst, kEvery };

  struct Options {
    std::string policy = "lfu";  // a name that MakeCachePolicy knows
    Verify verify = Verify::kFirst;
    ReadQueue::Options reads;  // but for `memory`, which is the slots'
    std::function<absl::StatusOr<std::unique_ptr<ReadQueue>>(const ReadQueue::Options&)>
        make_queue = ReadQueue::Create;
  };

  struct Counters {
    int64_t hits = 0;    // experts that a visit needed and found in memory
    int64_t misses = 0;  // that it needed and had to wait for
    int64_t reads = 0;   // of experts, that ended well; guesses too
    int64_t bytes_read = 0;
    int64_t evictions = 0;
    int64_t guesses_used = 0;
    int64_t guesses_wasted = 0;  // begun, and gone without use
    absl::Duration waited;       // by visits, for reads
  };

  /// Called now and then while reading; false stops it.
  using Progress = std::function<bool(int64_t read_bytes, int64_t total_bytes)>;

  /// budget_bytes: of the slots. `source` is not used afterwards. REQUIRES: as ExpertFiles::Open.
  /// Errors: as ExpertFiles::Open, MakeCachePolicy and make_queue; FailedPrecondition - the budget
  /// has not the room
  ///         for as many experts as a token chooses: says how many bytes that is;
  ///         ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(const ModelConfig& config,
                                                             const StageSpec& stage,
                                                             const TensorSource& source,
                                                             int64_t budget_bytes,
                                                             const Options& options);
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  /// What Warm reads: all experts, if the slots hold them all; else those of the highest scores in
  /// cache(), as many as its slots, of those that have one.
  int64_t warm_bytes() const;
  /// Reads that, in file order. Errors: as Visit; Cancelled - by `progress`.
  absl::Status Warm(const Progress& progress);

  /// A layer's experts for rows that chose these: expert_ids and weights [rows, k]. Begins to read
  /// what is not in memory. The result is good until the next visit.
  /// Its errors: DataLoss - an expert could not be read, or is not what was packed, with the layer,
  /// the expert and the file. The visit is over then, and that expert is not in memory; later
  /// visits try again.
  ExpertBatches& Visit(int layer, absl::Span<const int32_t> expert_ids,
                       absl::Span<const float> weights);

  /// For what was learned in earlier runs, and is for later ones (expert_heat.h): between visits.
  ExpertCache& cache() { return cache_; }
  /// Of the last visit; -1: there was none.
  int64_t step() const { return step_; }

  int num_slots() const { return static_cast<int>(slots_.size()); }
  int64_t num_bytes() const { return memory_.size(); }

  /// Thread-safe.
  Counters counters() const;

 private:
  /// What Warm reads, ascending.
  std::vector<ExpertKey> WarmKeys() const;

  struct Slot {
    enum class State { kFree, kReading, kReady };
    State state = State::kFree;
    ExpertKey key;
    ReadQueue::Id read = 0;  // of kReading
    bool wanted = false;     // by the visit
    bool guess = false;      // read for no visit, and not wanted since
    bool checked = false;    // as `verify` asks
  };

  /// An expert that the visit needs.
  struct Need {
    int32_t expert = 0;
    int64_t rows = 0;
    float weight = 0;  // summed over them
    double score = 0;  // before this visit
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

  ExpertStore(std::unique_ptr<ExpertFiles> files, Buffer memory, int num_passed,
              std::unique_ptr<CachePolicy> policy, Verify verify);

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
  /// The expert that is likely to be needed next and has no slot: the one place that guesses.
  std::optional<ExpertKey> NextGuess();
  /// Takes back what was guessed, passes, and is not wanted.
  void DropGuesses();
  void MakeRoom();
  void BeginRead(int slot, ExpertKey key, ReadPriority priority);
  void WaitForRead();
  /// Errors: that of a read of something wanted.
  absl::Status CollectReads();
  absl::Status CheckBytes(int slot);

  // Slots.
  bool IsPassed(int slot) const { return slot >= cache_.shape().num_slots; }
  Slot& At(int slot) { return slots_[static_cast<size_t>(slot)]; }
  std::byte* MemoryOf(int slot) const { return memory_.data() + slot * slot_bytes_; }
  int FindSlot(ExpertKey key) const;  // -1: it has none
  int FindFreePassed() const;         // -1: there is none
  int TakeFromCache(ExpertKey key);   // -1: all are held
  void Want(int slot);
  void Unwant(int slot);
  /// Frees a slot. REQUIRES: one of the cache is held once.
  void Forget(int slot);

  const std::unique_ptr<ExpertFiles> files_;
  const Verify verify_;
  const int64_t slot_bytes_;
  const Buffer memory_;
  ExpertCache cache_;
  std::vector<Slot> slots_;     // first the cache's, then those through which experts pass
  int free_cached_;             // slots of the cache
  int reading_ = 0;             // slots
  std::vector<bool> verified_;  // by layer - first, then expert: its hash was right once

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
  int guess_layer_ = -1;             // -1: nothing is guessed
  int guess_expert_ = 0;             // the next one

  struct Ended {
    int slot;
    absl::Status status;
  };
  std::vector<Ended> collected_;

  mutable Mutex mu_;
  CondVar read_ended_;
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mu_);
  Counters counters_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<ReadQueue> queue_;  // last, so that it ends first: its threads use the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_STORE_H_
