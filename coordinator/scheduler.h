#ifndef CARAVAN_COORDINATOR_SCHEDULER_H_
#define CARAVAN_COORDINATOR_SCHEDULER_H_

// Decides what the next step of a plan carries, and checks what comes home. One scheduler lives as
// long as one plan. No threads, no clock, no sending.
//
// Admission is first in, first out: the head of the queue runs as soon as the free KV blocks cover
// its worst case, which is then reserved, so that no running sequence ever lacks a block.
//
// A running sequence has at most one slice in flight. Those that have none stand in line; a step
// takes from the head of the line at most ceil(running / num_stages) sequences, so that the
// sequences spread over as many micro-batches as there are stages. A decoding sequence takes one
// row; one that prefills takes what the step's decoding sequences leave of max_step_tokens, at
// least one row (so nobody starves) and at most a chunk.
//
// At most num_stages steps are in flight: one for each stage to work on. One more would only wait,
// and for it every micro-batch would be smaller and share each expert read among fewer rows; what
// is given up is that the pipeline idles for the hop home, which is short against a stage's work.

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "caravan/v1/pipeline.pb.h"
#include "coordinator/sequence.h"

namespace caravan {

/// Not thread-safe. Borrows each sequence from Enqueue until it ends or Release.
class Scheduler {
 public:
  struct Options {
    uint64_t plan_version = 0;
    int num_stages = 1;
    int64_t kv_blocks = 0;  // of the stage that has fewest
    int64_t kv_block_tokens = 1;
    int64_t max_step_tokens = 1;
    int64_t prefill_chunk = 1;  // tokens
    int64_t vocab_size = 1;
  };
  explicit Scheduler(const Options& options);

  /// Errors: ResourceExhausted - its worst case is more than the whole KV cache.
  absl::Status CheckFits(const Sequence& sequence) const;

  /// REQUIRES: kQueued; CheckFits(*sequence) is OK.
  void Enqueue(Sequence* sequence);

  /// Forgets a queued or running sequence that was failed or cancelled. Its blocks are free at
  /// once, or when its slice in flight is home.
  void Release(Sequence* sequence);

  /// The next step to send, in flight from now on; nullopt while none is due. Frees ride on any
  /// step, and go alone when no slice is ready. `admit` lets queued sequences in first.
  std::optional<v1::Step> NextStep(bool admit);

  /// One slice that came home, of a sequence that had not ended meanwhile.
  struct ReturnedSlice {
    Sequence* sequence;             // now advanced, or failed; no longer borrowed if at an end
    const v1::SliceResult* result;  // null when the step failed
  };
  /// Takes in a step that came home. The result points into `step`.
  /// Errors: FailedPrecondition - not the oldest step in flight; Internal - results that do not
  ///         answer its slices. After an error the plan cannot go on.
  absl::StatusOr<std::vector<ReturnedSlice>> TakeIn(const v1::Step& step);

  int64_t free_blocks() const { return free_blocks_; }
  int num_queued() const { return static_cast<int>(queue_.size()); }
  /// No sequence runs, no step is in flight and none is due but for the queue.
  bool Idle() const { return running_.empty() && in_flight_.empty() && freed_.empty(); }

 private:
  struct Running {
    Sequence* sequence = nullptr;  // null: ended while its slice is in flight
    int64_t reserved_blocks = 0;
  };
  struct SentSlice {
    uint64_t sequence_id = 0;
    int64_t num_rows = 0;
    v1::SliceOutput output = v1::SLICE_OUTPUT_UNSPECIFIED;
  };
  struct SentStep {
    uint64_t step_id = 0;
    std::vector<SentSlice> slices;
  };

  int64_t WorstCaseBlocks(const Sequence& sequence) const;
  int64_t ChunkTokens(const Sequence& sequence) const;
  void Admit();
  void FillSlices(v1::Step* step);
  absl::Status CheckResults(const SentStep& sent, const v1::Step& step) const;
  void Free(uint64_t sequence_id, bool known_to_workers);

  const Options options_;
  int64_t free_blocks_;
  uint64_t last_step_id_ = 0;
  std::deque<Sequence*> queue_;  // waiting for blocks
  std::unordered_map<uint64_t, Running> running_;
  std::deque<Sequence*> ready_;  // running, without a slice in flight; in line for a step
  std::deque<SentStep> in_flight_;
  std::vector<uint64_t> freed_;  // to ride on the next step
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SCHEDULER_H_
