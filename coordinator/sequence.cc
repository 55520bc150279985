#include "coordinator/sequence.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace caravan {
namespace {

// How much later than submitted a bulk job queues: what a person who waits for a reply is spared,
// and what a bulk job loses at most to those who came after it.
constexpr absl::Duration kBulkDelay = absl::Minutes(1);

bool HasPenalties(const v1::SamplingParams& sampling) {
  const float repetition = sampling.repetition_penalty();
  return sampling.frequency_penalty() != 0 || sampling.presence_penalty() != 0 ||
         (repetition != 0 && repetition != 1);
}

std::vector<int32_t> Concatenate(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  std::vector<int32_t> all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

}  // namespace

Sequence::Sequence(uint64_t id, JobSpec spec, absl::Duration submitted_at)
    : id_(id),
      spec_(std::move(spec)),
      submitted_at_(submitted_at),
      rank_(spec_.priority == JobPriority::kBulk ? submitted_at + kBulkDelay : submitted_at, id),
      token_ids_(Concatenate(spec_.prompt, spec_.reply)) {
  CARAVAN_CHECK(!spec_.prompt.empty());
  CARAVAN_CHECK(spec_.prompt_logits || spec_.score_prompt || spec_.max_new_tokens > 0);
}

bool Sequence::Admit(BlockManager& blocks) {
  CARAVAN_CHECK(state_ == SequenceState::kQueued);
  // What is to be had from every row of the prompt cannot be had from a cache.
  const int64_t reused = YieldsFromPrompt() && run_ == 0 ? 0 : blocks.Adopt(token_ids_, table_);
  if (!blocks.Grow(known_tokens(), table_)) {
    blocks.Free(table_);
    return false;
  }
  if (run_++ == 0) reused_tokens_ = std::min(reused, prompt_tokens());
  cached_tokens_ = reused;
  sent_tokens_ = reused;
  state_ = SequenceState::kPrefilling;
  return true;
}

v1::SequenceSlice Sequence::TakeSlice(int64_t max_tokens) {
  CARAVAN_CHECK(running() && pending_tokens() >= 1 && max_tokens >= 1);
  const int64_t count = std::min(pending_tokens(), max_tokens);
  const int64_t first_position = sent_tokens_;
  sent_tokens_ += count;
  v1::SequenceSlice slice;
  slice.set_sequence_id(id_);
  slice.set_first_position(static_cast<uint32_t>(first_position));
  const auto first = token_ids_.begin() + first_position;
  slice.mutable_token_ids()->Add(first, first + count);
  slice.mutable_kv_blocks()->Add(table_.blocks.begin(), table_.blocks.end());
  const bool samples = pending_tokens() == 0 && spec_.max_new_tokens > 0;
  slice.set_output(spec_.prompt_logits ? v1::SLICE_OUTPUT_LOGITS
                   : samples           ? v1::SLICE_OUTPUT_SAMPLE
                                       : v1::SLICE_OUTPUT_NONE);
  if (spec_.score_prompt && generated_tokens() == 0) {
    const int64_t scored =
        std::min(first_position + count + 1, prompt_tokens()) - first_position - 1;
    slice.mutable_scored_token_ids()->Add(first + 1, first + 1 + scored);
  }
  if (samples || slice.scored_token_ids_size() > 0) *slice.mutable_sampling() = spec_.sampling;
  if (samples && HasPenalties(spec_.sampling)) {
    const auto reply = token_ids_.begin() + prompt_tokens();
    slice.mutable_history()->mutable_prompt_token_ids()->Add(token_ids_.begin(), reply);
    slice.mutable_history()->mutable_reply_token_ids()->Add(reply, token_ids_.end());
  }
  return slice;
}

void Sequence::CompleteSlice(int64_t num_rows, const v1::SliceResult& result,
                             BlockManager& blocks) {
  CARAVAN_CHECK(running() && tokens_in_flight() >= num_rows);
  const bool prefilled = state_ == SequenceState::kPrefilling;
  cached_tokens_ += num_rows;
  // While decoding, others learn of a block when it is full, and of the rest at the end.
  if (prefilled || blocks.BlocksFor(cached_tokens_) != blocks.BlocksFor(cached_tokens_ + 1)) {
    blocks.Publish(CachedTokens(), table_);
  }
  if (cached_tokens_ < known_tokens()) return;  // more of the prompt follows

  if (spec_.max_new_tokens == 0) {
    Finish(v1::FINISH_REASON_LENGTH, blocks);
    return;
  }
  const auto token_id = static_cast<int32_t>(result.sampled(0).token_id());
  token_ids_.push_back(token_id);
  state_ = SequenceState::kDecoding;
  const auto& stops = spec_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
    Finish(v1::FINISH_REASON_STOP, blocks);
  } else if (generated_tokens() == spec_.max_new_tokens) {
    Finish(v1::FINISH_REASON_LENGTH, blocks);
  }
}

void Sequence::Preempt(BlockManager& blocks) {
  CARAVAN_CHECK(preemptible());
  End(SequenceState::kQueued, blocks);
  cached_tokens_ = 0;
  sent_tokens_ = 0;
}

void Sequence::Finish(v1::FinishReason reason, BlockManager& blocks) {
  finish_reason_ = reason;
  End(SequenceState::kFinished, blocks);
}

void Sequence::End(SequenceState state, BlockManager& blocks) {
  CARAVAN_CHECK(running() || state_ == SequenceState::kQueued);
  // The next turn of a conversation begins with this one.
  if (running()) blocks.Publish(CachedTokens(), table_);
  blocks.Free(table_);
  state_ = state;
}

}  // namespace caravan
