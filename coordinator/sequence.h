#ifndef CARAVAN_COORDINATOR_SEQUENCE_H_
#define CARAVAN_COORDINATOR_SEQUENCE_H_

// A job's running state in token ids: what is known, what of it lies in the workers' KV caches,
// and what is on its way there.

#include <cstdint>
#include <vector>

#include "coordinator/job.h"

namespace caravan {

//                 Admit            prompt cached           stop token, max_new_tokens
//     kQueued ------------> kPrefilling ----------> kDecoding -----------------> kFinished
//        |                       |  \                   |     (scoring: straight from kPrefilling)
//        +-----------------------+---------------------+----> kFailed, kCancelled
enum class SequenceState { kQueued, kPrefilling, kDecoding, kFinished, kFailed, kCancelled };

/// Not thread-safe.
class Sequence {
 public:
  /// REQUIRES: CheckJobSpec(spec) is OK; spec generates or scores something.
  Sequence(uint64_t id, JobSpec spec);

  uint64_t id() const { return id_; }
  SequenceState state() const { return state_; }
  bool running() const {
    return state_ == SequenceState::kPrefilling || state_ == SequenceState::kDecoding;
  }
  v1::FinishReason finish_reason() const { return finish_reason_; }  // once kFinished
  bool wants_prompt_logits() const { return spec_.prompt_logits; }

  int64_t prompt_tokens() const { return static_cast<int64_t>(spec_.prompt.size()); }
  int64_t generated_tokens() const {
    return static_cast<int64_t>(token_ids_.size()) - prompt_tokens();
  }
  /// How long it can become.
  int64_t worst_case_tokens() const { return prompt_tokens() + spec_.max_new_tokens; }
  /// Tokens in the KV caches, and those on their way there (at most one slice).
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t tokens_in_flight() const { return tokens_in_flight_; }
  /// Tokens that a slice could carry now: the rest of the prompt, or the newest token.
  int64_t pending_tokens() const {
    return static_cast<int64_t>(token_ids_.size()) - cached_tokens_ - tokens_in_flight_;
  }

  /// REQUIRES: kQueued.
  void Admit();
  /// The next slice, of at most `max_tokens`; it is in flight from now on.
  /// REQUIRES: running; no slice in flight; max_tokens >= 1.
  v1::SequenceSlice TakeSlice(int64_t max_tokens);
  /// The slice in flight came home; `result` holds a token if the slice asked for one.
  /// REQUIRES: running; a slice in flight; the token id is within the vocabulary.
  void CompleteSlice(const v1::SliceResult& result);
  /// REQUIRES: not at an end yet.
  void Fail() { End(SequenceState::kFailed); }
  void Cancel() { End(SequenceState::kCancelled); }

 private:
  void End(SequenceState state);

  const uint64_t id_;
  const JobSpec spec_;
  SequenceState state_ = SequenceState::kQueued;
  v1::FinishReason finish_reason_ = v1::FINISH_REASON_UNSPECIFIED;
  std::vector<int32_t> token_ids_;  // the prompt, then what was generated
  int64_t cached_tokens_ = 0;
  int64_t tokens_in_flight_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_SEQUENCE_H_
