#ifndef CARAVAN_COORDINATOR_SCHEDULER_H_
#define CARAVAN_COORDINATOR_SCHEDULER_H_

// Decides what the next step of a plan carries, and checks what comes home. One scheduler lives as
// long as one plan. No threads, no clock, no sending.
//
// Admission goes by rank (interactive jobs before bulk jobs, which age). A sequence runs as soon as
// the free KV blocks cover what is known of it and leave one to every running sequence. Blocks are
// taken as sequences grow; when none is free, the youngest bulk sequence (the youngest of all, if
// there is no bulk) gives its own back, queues again and is prefilled again. An interactive
// sequence that cannot be admitted has bulk sequences of later rank give way too.
//
// Suspects (suspicion.h) come first, so that it is known soon what they are, and run in groups:
// those of the smallest groups before others, by rank. Nobody runs beside a group, which begins
// when no step is in flight. Who ran before, and who of the group is no suspect any more, waits
// with its KV blocks, unless the next group has no room without them; when no suspect is left, it
// runs on.
//
// At most num_stages steps are in flight: one for each stage to work on. One more would only wait,
// and for it every micro-batch would be smaller and share each expert read among fewer rows; what
// is given up is that the pipeline idles for the hop home, which is short against a stage's work.
//
// A step takes first the sequences that decode, one row each, in turn: at most their share of
// ceil(decoding / num_stages), so that they spread over the micro-batches, and at most three
// quarters of the rows while others prefill. Chunks of prompts take the rest of the rows, in order
// of rank: a stream waits for no more than one step's rows on each stage. Chunks of one prompt
// follow each other without waiting, so that all stages work on a long prompt at once.
//
// Where the pipeline drafts, who decodes takes along the drafts of its last result, as long as
// SpeculationGate finds that they pay. Drafts come last: they take rows that the chosen sequences
// leave (not those kept for prompts) and blocks that are free, and nobody gives way for them.
// Prompts always run through the layer that drafts: what it keeps of them is needed later, also by
// others that begin alike.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "caravan/v1/pipeline.pb.h"
#include "coordinator/block_manager.h"
#include "coordinator/sequence.h"
#include "coordinator/speculation_gate.h"

namespace caravan {

/// Not thread-safe. Borrows each sequence from Enqueue until it ends or Release.
class Scheduler {
 public:
  struct Options {
    uint64_t plan_version = 0;
    int num_stages = 1;
    int64_t kv_blocks = 0;       // of the stage that has fewest
    int64_t near_kv_blocks = 0;  // those with the lowest numbers, which no stage has on its disk
    int64_t kv_block_tokens = 1;
    int64_t max_step_tokens = 1;
    int64_t prefill_chunk = 1;  // tokens
    int64_t vocab_size = 1;
    bool drafts = false;           // the last stage has the layer of multi-token prediction
    bool suspects = true;          // there may be some; else none is looked for at every step
    ArchiveContents archive = {};  // of KV blocks, on the stages' disks
  };
  /// What was done since the beginning; grows only.
  struct Counters {
    int64_t steps = 0;
    int64_t rows = 0;
    int64_t preemptions = 0;
    int64_t prefix_query_tokens = 0;  // known when a sequence was admitted
    int64_t prefix_hit_tokens = 0;    // of these, found in the KV cache
    int64_t draft_tokens = 0;         // that came home verified
    int64_t draft_accepted_tokens = 0;

    Counters& operator+=(const Counters& other) {
      steps += other.steps;
      rows += other.rows;
      preemptions += other.preemptions;
      prefix_query_tokens += other.prefix_query_tokens;
      prefix_hit_tokens += other.prefix_hit_tokens;
      draft_tokens += other.draft_tokens;
      draft_accepted_tokens += other.draft_accepted_tokens;
      return *this;
    }
  };
  explicit Scheduler(const Options& options);

  /// Errors: OutOfRange - its worst case is more than the whole KV cache.
  absl::Status CheckFits(const Sequence& sequence) const;

  /// REQUIRES: kQueued; CheckFits(*sequence) is OK.
  void Enqueue(Sequence* sequence);

  /// Ends a queued or running sequence that its client gave up, or that failed: Sequence::Cancel.
  /// Its blocks are free at once.
  void Cancel(Sequence* sequence);

  /// The plan is over: those that run are queued, as by a preemption, and none is borrowed any
  /// more. Returns of the former those that may be why: all but who waited for suspects.
  std::vector<Sequence*> Release();

  /// The next step to send, in flight from now on; nullopt while none is due. `admit` lets queued
  /// sequences in first.
  std::optional<v1::Step> NextStep(bool admit);

  /// When no step is in flight: one without slices by which the stages archive the blocks that were
  /// filled since the last one, in flight from now on; nullopt if there is none.
  std::optional<v1::Step> ArchivingStep();

  /// One slice that came home, of a sequence that still waited for it.
  struct ReturnedSlice {
    Sequence* sequence;             // now advanced, or queued again; not borrowed if at an end
    int64_t first_position;         // of the slice
    const v1::SliceResult* result;  // null when the step failed
    int num_tokens;  // of the sampled ones, those that belong to the reply: the first
  };
  /// Takes in a step that came home `round_trip` after it was sent. The results point into `step`.
  /// Errors: FailedPrecondition - not the oldest step in flight; Internal - results that do not
  ///         answer its slices. After an error the plan cannot go on.
  absl::StatusOr<std::vector<ReturnedSlice>> TakeIn(const v1::Step& step,
                                                    absl::Duration round_trip);

  /// As ArchiveIndex::SetCapacity.
  void SetArchiveCapacity(int64_t capacity) { blocks_.SetArchiveCapacity(capacity); }

  const BlockManager& blocks() const { return blocks_; }
  const Counters& counters() const { return counters_; }
  int num_queued() const { return static_cast<int>(queue_.size()); }
  int num_running() const { return static_cast<int>(running_.size()); }
  /// Whether a step that is sent now drafts, if somebody decodes.
  bool speculating() const { return gate_.has_value() && gate_->Drafts(num_decoding_); }
  /// No sequence runs and no step is in flight.
  bool Idle() const { return running_.empty() && in_flight_.empty(); }

 private:
  struct SentSlice {
    uint64_t sequence_id = 0;
    uint64_t run = 0;
    int64_t first_position = 0;
    int64_t num_tokens = 0;        // known ones, the first rows
    std::vector<uint32_t> drafts;  // the rows behind them
    int64_t num_scored = 0;
    v1::SliceOutput output = v1::SLICE_OUTPUT_UNSPECIFIED;
    bool drafting = false;  // asks for drafts
    bool decoding = false;  // was not a chunk of a prompt

    int64_t num_rows() const { return num_tokens + static_cast<int64_t>(drafts.size()); }
  };
  struct SentStep {
    uint64_t step_id = 0;
    bool drafts = false;       // what the gate said
    int64_t num_decoding = 0;  // sequences, in this step or not
    std::vector<SentSlice> slices;
  };
  using ByRank = std::map<Sequence::Rank, Sequence*>;

  int64_t ChunkTokens(const Sequence& sequence) const;
  /// With the next id, in flight.
  v1::Step BeginStep();
  /// Counts the step, which takes along that `kept` are to be archived.
  void EndStep(const std::vector<ArchivedKvBlock>& kept, v1::Step* step);
  /// With `admit`, queued sequences are let in. Whether or not, suspects run without others.
  void Admit(bool admit);
  /// Whether suspects run, or are to run next; others wait then.
  bool AdmitSuspects(bool admit);
  /// The group that runs next, while no step is in flight. REQUIRES: all that run wait; `suspects`
  /// are queued, at least one.
  void AdmitGroup(std::vector<Sequence*> suspects);
  /// All that run and are no suspects wait.
  void HaveOthersWait();
  /// Nobody waits any more.
  void ResumeOthers();
  /// It is admitted, and runs.
  void Run(Sequence* sequence);
  /// Who gives its blocks back first; null if nobody can.
  Sequence* Victim() const;
  void Requeue(Sequence* sequence);
  /// Those that were admitted with blocks from the archives, and have not been sent.
  void RequeueRestoring();
  void Preempt(Sequence* sequence);
  /// Makes room for one more token. False if the sequence itself had to give way.
  bool MakeRoom(Sequence* sequence);
  void Forget(Sequence* sequence);
  void TakeOutOfLine(Sequence* sequence);
  /// After Admit or CompleteSlice: in line for a step, if it has something to send and does not
  /// wait.
  void Line(Sequence* sequence);
  void FillSlices(v1::Step* step);
  int64_t FillDecoding(v1::Step* step);
  void FillPrefilling(int64_t rows_left, v1::Step* step);
  /// How many of the sequence's drafts it can take along in `max_rows`; it has blocks for these.
  int64_t MakeRoomForDrafts(Sequence* sequence, int64_t max_rows);
  /// Returns the rows that the slice takes.
  int64_t AddSlice(Sequence* sequence, int64_t max_rows, bool draft, v1::Step* step);
  absl::Status CheckResults(const SentStep& sent, const v1::Step& step) const;
  absl::Status CheckTokens(const SentSlice& slice, const v1::SliceResult& result) const;
  void TellGate(const SentStep& sent, const v1::Step& step, absl::Duration round_trip);

  const Options options_;
  BlockManager blocks_;
  Counters counters_;
  uint64_t last_step_id_ = 0;
  ByRank queue_;                                     // waiting for blocks
  std::unordered_map<uint64_t, Sequence*> running_;  // by id
  ByRank running_interactive_;                       // the same by rank
  ByRank running_bulk_;
  int64_t num_decoding_ = 0;
  std::deque<Sequence*> decoding_ready_;  // in line for a step
  ByRank prefilling_ready_;               // with more of the prompt to send
  ByRank waiting_;                        // of those that run, who waits for suspects
  std::deque<SentStep> in_flight_;
  std::optional<SpeculationGate> gate_;  // if the pipeline drafts
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SCHEDULER_H_
