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

bool Sequence::Admit(BlockManager& blocks, int64_t reserve) {
  CARAVAN_CHECK(state_ == SequenceState::kQueued);
  // What is to be had from every row of the prompt cannot be had from a cache.
  const int64_t reused = awaits_prompt() ? 0 : blocks.Adopt(token_ids_, table_, reserve);
  const int64_t missing =
      blocks.BlocksFor(known_tokens()) - static_cast<int64_t>(table_.blocks.size());
  if (missing + reserve > blocks.free_blocks()) {
    blocks.Free(table_);
    return false;
  }
  CARAVAN_CHECK(blocks.Grow(known_tokens(), table_));
  if (run_++ == 0) reused_tokens_ = std::min(reused, prompt_tokens());
  adopted_tokens_ = reused;
  cached_tokens_ = reused;
  sent_tokens_ = reused;
  state_ = SequenceState::kPrefilling;
  return true;
}

v1::SequenceSlice Sequence::TakeSlice(int64_t max_rows, bool draft) {
  CARAVAN_CHECK(running() && pending_tokens() >= 1 && max_rows >= 1);
  const int64_t count = std::min(pending_tokens(), max_rows);
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
  if (draft && !spec_.prompt_logits) {
    slice.set_draft(true);
    if (pending_tokens() > 0) slice.set_next_token_id(static_cast<uint32_t>(*(first + count)));
    const int64_t num_drafts = std::min(this->num_drafts(), max_rows - count);
    slice.mutable_token_ids()->Add(drafts_.begin(), drafts_.begin() + num_drafts);
    slice.set_num_draft_tokens(static_cast<uint32_t>(num_drafts));
  }
  drafts_.clear();
  return slice;
}

int Sequence::CompleteSlice(int64_t num_tokens, const v1::SliceResult& result,
                            BlockManager& blocks) {
  CARAVAN_CHECK(running() && tokens_in_flight() >= num_tokens);
  const bool prefilled = state_ == SequenceState::kPrefilling;
  const int64_t cached_before = cached_tokens_;
  cached_tokens_ += num_tokens;
  int taken = 0;
  std::optional<v1::FinishReason> end;
  if (cached_tokens_ == known_tokens()) {
    if (spec_.max_new_tokens == 0) end = v1::FINISH_REASON_LENGTH;
    while (!end.has_value() && taken < result.sampled_size()) {
      // One that is not the last was a draft: its keys and values are there already.
      const bool was_draft = taken + 1 < result.sampled_size();
      end = Append(static_cast<int32_t>(result.sampled(taken++).token_id()));
      cached_tokens_ += was_draft ? 1 : 0;
      sent_tokens_ += was_draft ? 1 : 0;
    }
  }
  if (end.has_value()) {
    Finish(*end, blocks);
    return taken;
  }
  // While decoding, others learn of a block when it is full, and of the rest at the end.
  if (prefilled || blocks.BlocksFor(cached_before + 1) != blocks.BlocksFor(cached_tokens_ + 1)) {
    blocks.Publish(CachedTokens(), table_);
  }
  TakeDrafts(result);
  return taken;
}

std::optional<v1::FinishReason> Sequence::Append(int32_t token_id) {
  token_ids_.push_back(token_id);
  state_ = SequenceState::kDecoding;
  const auto& stops = spec_.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
    return v1::FINISH_REASON_STOP;
  }
  if (generated_tokens() == spec_.max_new_tokens) return v1::FINISH_REASON_LENGTH;
  return std::nullopt;
}

void Sequence::TakeDrafts(const v1::SliceResult& result) {
  // A step gives one token more than drafts, so that drafts stop one before the end.
  const int64_t room = std::max<int64_t>(0, spec_.max_new_tokens - generated_tokens() - 1);
  const auto& drafts = result.draft_token_ids();
  drafts_.assign(drafts.begin(), drafts.begin() + std::min<int64_t>(drafts.size(), room));
}

void Sequence::Preempt(BlockManager& blocks) {
  CARAVAN_CHECK(running());
  End(SequenceState::kQueued, blocks);
  cached_tokens_ = 0;
  sent_tokens_ = 0;
  drafts_.clear();
}

void Sequence::Finish(v1::FinishReason reason, BlockManager& blocks) {
  finish_reason_ = reason;
  End(SequenceState::kFinished, blocks);
}

void Sequence::End(SequenceState state, BlockManager& blocks) {
  CARAVAN_CHECK(running() || state_ == SequenceState::kQueued);
  // The next turn of a conversation begins with this one. Before a slice has come home, the copy of
  // a block that the first one brings may not have been made.
  if (running() && cached_tokens_ > adopted_tokens_) blocks.Publish(CachedTokens(), table_);
  blocks.Free(table_);
  state_ = state;
}

}  // namespace caravan
