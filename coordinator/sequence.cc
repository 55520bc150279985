#include "coordinator/sequence.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace caravan {

Sequence::Sequence(uint64_t id, JobSpec spec)
    : id_(id), spec_(std::move(spec)), token_ids_(spec_.prompt) {
  CARAVAN_CHECK(!spec_.prompt.empty());
  CARAVAN_CHECK(spec_.prompt_logits != (spec_.max_new_tokens > 0));
}

void Sequence::Admit() {
  CARAVAN_CHECK(state_ == SequenceState::kQueued);
  state_ = SequenceState::kPrefilling;
}

v1::SequenceSlice Sequence::TakeSlice(int64_t max_tokens) {
  CARAVAN_CHECK(running() && tokens_in_flight_ == 0 && max_tokens >= 1);
  const bool reaches_the_end = pending_tokens() <= max_tokens;
  const int64_t count = std::min(pending_tokens(), max_tokens);
  v1::SequenceSlice slice;
  slice.set_sequence_id(id_);
  slice.set_first_position(static_cast<uint32_t>(cached_tokens_));
  const auto first = token_ids_.begin() + cached_tokens_;
  slice.mutable_token_ids()->Add(first, first + count);
  slice.set_output(spec_.prompt_logits ? v1::SLICE_OUTPUT_LOGITS
                   : reaches_the_end   ? v1::SLICE_OUTPUT_SAMPLE
                                       : v1::SLICE_OUTPUT_NONE);
  if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) *slice.mutable_sampling() = spec_.sampling;
  tokens_in_flight_ = count;
  return slice;
}

void Sequence::CompleteSlice(const v1::SliceResult& result) {
  CARAVAN_CHECK(running() && tokens_in_flight_ > 0);
  cached_tokens_ += tokens_in_flight_;
  tokens_in_flight_ = 0;
  if (pending_tokens() > 0) return;  // more of the prompt follows

  if (spec_.prompt_logits) {
    finish_reason_ = v1::FINISH_REASON_LENGTH;
    state_ = SequenceState::kFinished;
    return;
  }
  const auto token_id = static_cast<int32_t>(result.token_id());
  token_ids_.push_back(token_id);
  state_ = SequenceState::kDecoding;
  const auto& stops = spec_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
    finish_reason_ = v1::FINISH_REASON_STOP;
    state_ = SequenceState::kFinished;
  } else if (generated_tokens() == spec_.max_new_tokens) {
    finish_reason_ = v1::FINISH_REASON_LENGTH;
    state_ = SequenceState::kFinished;
  }
}

void Sequence::End(SequenceState state) {
  CARAVAN_CHECK(running() || state_ == SequenceState::kQueued);
  state_ = state;
}

}  // namespace caravan
