#ifndef CARAVAN_COORDINATOR_SEQUENCE_H_
#define CARAVAN_COORDINATOR_SEQUENCE_H_

// A job's running state in token ids: what is known, what of it lies in the workers' KV caches,
// what is on its way there, and in which blocks. With speculation also the drafts of what follows:
// they go out behind the newest token, and are known only once the model has said them too.

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/block_manager.h"
#include "coordinator/job.h"
#include "coordinator/suspicion.h"

namespace caravan {

//                 Admit            all known tokens cached     stop token, max_new_tokens
//     kQueued ------------> kPrefilling ----------> kDecoding -----------------> kFinished
//        |  <-------------------+  |                  |  |     (nothing to generate: straight
//        |       Preempt           |                  |  |      from kPrefilling)
//        |  <----------------------+------------------+  |
//        +-------------------------+---------------------+----> kCancelled
enum class SequenceState { kQueued, kPrefilling, kDecoding, kFinished, kCancelled };

/// Not thread-safe.
class Sequence {
 public:
  /// Whose turn it is: the smaller goes first. (When, by the clock; the id.)
  using Rank = std::pair<absl::Duration, uint64_t>;

  /// REQUIRES: CheckJobSpec(spec) is OK; spec generates or scores something.
  Sequence(uint64_t id, JobSpec spec, absl::Duration submitted_at);

  uint64_t id() const { return id_; }
  SequenceState state() const { return state_; }
  bool running() const {
    return state_ == SequenceState::kPrefilling || state_ == SequenceState::kDecoding;
  }
  v1::FinishReason finish_reason() const { return finish_reason_; }  // once kFinished
  const JobSpec& spec() const { return spec_; }
  absl::Duration submitted_at() const { return submitted_at_; }

  /// Bulk jobs queue as if submitted later, so interactive ones overtake them, but not forever.
  Rank rank() const { return rank_; }
  /// May be preempted and lose nothing but time: it has yielded what it yields once only, from its
  /// prompt.
  bool preemptible() const { return running() && !awaits_prompt(); }
  /// It still yields logits or scores of its prompt.
  bool awaits_prompt() const {
    return (spec_.prompt_logits || spec_.score_prompt) && generated_tokens() == 0;
  }
  /// Whether it may be what takes pipelines down. Outlives runs and plans.
  const Suspicion& suspicion() const { return suspicion_; }
  Suspicion& suspicion() { return suspicion_; }
  /// Counts its admissions: tells a slice of this run from one of a run before.
  uint64_t run() const { return run_; }

  int64_t prompt_tokens() const { return static_cast<int64_t>(spec_.prompt.size()); }
  int64_t known_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  int64_t generated_tokens() const { return known_tokens() - prompt_tokens(); }
  /// How long it can become.
  int64_t worst_case_tokens() const { return prompt_tokens() + spec_.max_new_tokens; }
  /// Tokens whose keys and values lie in the KV caches, and those on their way there.
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t tokens_in_flight() const { return sent_tokens_ - cached_tokens_; }
  /// Tokens that a slice could carry now: more of what is known.
  int64_t pending_tokens() const { return known_tokens() - sent_tokens_; }
  /// Of the prompt, what the first run found in the KV cache.
  int64_t reused_tokens() const { return reused_tokens_; }
  /// Drafts that the next slice could carry behind the newest token: never so many that the reply
  /// could pass max_new_tokens.
  int64_t num_drafts() const { return static_cast<int64_t>(drafts_.size()); }

  /// Takes blocks for all that is known, shared ones as far as they are to be found. False, and
  /// nothing changes, unless these blocks and `reserve` more are there. REQUIRES: kQueued.
  bool Admit(BlockManager& blocks, int64_t reserve = 0);
  /// The next slice, of at most `max_rows`; it is in flight from now on. If it starts a run, its
  /// step makes table().pending_copy. With `draft` it asks for drafts (unless the prompt's logits
  /// are all that is wanted), and carries those that are there, behind what is pending and as far
  /// as rows are left. Drafts that it does not carry are forgotten. REQUIRES: running;
  /// pending_tokens() >= 1; max_rows >= 1; the table holds its last row.
  v1::SequenceSlice TakeSlice(int64_t max_rows, bool draft = false);
  /// The oldest slice in flight, of `num_tokens` known ones and perhaps drafts, came home; `result`
  /// holds sampled tokens if the slice asked for them: one, and one for each accepted draft. They
  /// are taken in up to one that ends the reply; returns how many. What lies behind it never was.
  /// REQUIRES: running; a slice in flight; all but the last sampled token are the slice's drafts;
  /// the token ids are within the vocabulary.
  int CompleteSlice(int64_t num_tokens, const v1::SliceResult& result, BlockManager& blocks);
  /// Back to the queue, without blocks; what was generated stays. Slices in flight no longer count.
  /// What is wanted of the prompt comes from its beginning again, if it awaits that.
  /// REQUIRES: running.
  void Preempt(BlockManager& blocks);
  /// Gives its blocks back. REQUIRES: not at an end yet.
  void Cancel(BlockManager& blocks) { End(SequenceState::kCancelled, blocks); }

  BlockTable& table() { return table_; }

 private:
  absl::Span<const int32_t> CachedTokens() const {
    return absl::MakeConstSpan(token_ids_).first(static_cast<size_t>(cached_tokens_));
  }
  /// Takes in one token of the reply; says if it is the last, and why.
  std::optional<v1::FinishReason> Append(int32_t token_id);
  /// The drafts of a result, as far as they may be needed.
  void TakeDrafts(const v1::SliceResult& result);
  void Finish(v1::FinishReason reason, BlockManager& blocks);
  void End(SequenceState state, BlockManager& blocks);

  const uint64_t id_;
  const JobSpec spec_;
  const absl::Duration submitted_at_;
  const Rank rank_;
  SequenceState state_ = SequenceState::kQueued;
  v1::FinishReason finish_reason_ = v1::FINISH_REASON_UNSPECIFIED;
  uint64_t run_ = 0;
  Suspicion suspicion_;
  std::vector<int32_t> token_ids_;  // the prompt, then what was generated
  int64_t adopted_tokens_ = 0;      // that this run found in the KV cache
  int64_t cached_tokens_ = 0;       // adopted_tokens_, and those that came home
  int64_t sent_tokens_ = 0;         // cached_tokens_ and those in flight
  int64_t reused_tokens_ = 0;
  std::vector<int32_t> drafts_;  // of the tokens behind token_ids_; while a slice is in flight none
  BlockTable table_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SEQUENCE_H_
