#include "coordinator/openai/reply_assembler.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"

namespace caravan {
namespace {

/// The piece that `part` grows: the last one, or a new one.
ReplyPiece& PieceOf(ReplyPart part, std::vector<ReplyPiece>& pieces) {
  if (pieces.empty() || pieces.back().part != part) pieces.push_back({part, "", {}});
  return pieces.back();
}

}  // namespace

int64_t CountCharacters(const std::string& text) {
  // Every byte but those that continue a character.
  return absl::c_count_if(text, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

ReplyAssembler::ReplyAssembler(const TextModel& text, const Options& options)
    : text_(text),
      options_(options),
      stream_(text.NewReply()),
      stops_(options.stop),
      part_(options.is_chat && text.chat().reply_starts_in_thought() ? ReplyPart::kThought
                                                                     : ReplyPart::kAnswer),
      received_characters_(options.text_offset) {}

std::vector<ReplyPiece> ReplyAssembler::Push(const JobUpdate& update) {
  std::vector<ReplyPiece> pieces;
  for (const ScoredToken& token : update.tokens) {
    if (done_) break;
    TakeIn(token, pieces);
  }
  if (update.finished && !done_) {
    End(update.reason == v1::FINISH_REASON_STOP ? "stop" : "length", pieces);
  }
  return pieces;
}

std::vector<ReplyDelta> ReplyAssembler::Deltas(int32_t token_id) {
  if (options_.is_chat) return stream_.Push(token_id);
  const bool is_text = !text_.tokenizer().IsSpecial(token_id) &&
                       !absl::c_linear_search(text_.stop_token_ids(), token_id);
  return {{ReplyPart::kAnswer,
           is_text ? utf8_.Push(text_.tokenizer().TokenBytes(token_id)) : utf8_.Flush(),
           {token_id}}};
}

void ReplyAssembler::TakeIn(const ScoredToken& token, std::vector<ReplyPiece>& pieces) {
  ++num_tokens_;
  WaitingToken waiting = {{token, true, received_characters_}, part_, received_bytes_, 0};
  std::vector<ReplyDelta> deltas = Deltas(token.token_id);
  // The token belongs to the delta that has its id; text before it is the end of an earlier one's.
  for (const ReplyDelta& delta : deltas) {
    if (!delta.token_ids.empty()) {
      waiting.part = delta.part;
      waiting.begin = received_bytes_;
      waiting.token.text_offset = received_characters_;
      waiting.end = received_bytes_ + delta.text.size();
      waiting_.push_back(waiting);
      if (delta.part == ReplyPart::kThought) ++num_thought_tokens_;
    }
    TakeText(delta.part, delta.text, pieces);
    if (done_) return;
  }
}

void ReplyAssembler::TakeText(ReplyPart part, const std::string& text,
                              std::vector<ReplyPiece>& pieces) {
  if (part != part_) {
    Release(part_, stops_.Flush(), pieces);
    part_ = part;
  }
  received_bytes_ += text.size();
  received_characters_ += CountCharacters(text);
  if (part == ReplyPart::kThought) return Release(part, text, pieces);
  Release(part, stops_.Push(text), pieces);
  if (stops_.stopped()) {
    done_ = true;
    finish_reason_ = "stop";
  }
}

void ReplyAssembler::Release(ReplyPart part, const std::string& text,
                             std::vector<ReplyPiece>& pieces) {
  if (!text.empty()) PieceOf(part, pieces).text += text;
  released_bytes_ += text.size();
  while (!waiting_.empty()) {
    WaitingToken& next = waiting_.front();
    if (next.end > released_bytes_ && next.begin >= released_bytes_) return;
    PieceOf(next.part, pieces).tokens.push_back(std::move(next.token));
    waiting_.pop_front();
  }
}

void ReplyAssembler::End(const char* reason, std::vector<ReplyPiece>& pieces) {
  if (options_.is_chat) {
    for (const ReplyDelta& delta : stream_.Finish()) TakeText(delta.part, delta.text, pieces);
  } else {
    TakeText(ReplyPart::kAnswer, utf8_.Flush(), pieces);
  }
  if (done_) return;  // a stop string was the very end
  Release(part_, stops_.Flush(), pieces);
  done_ = true;
  finish_reason_ = reason;
}

}  // namespace caravan
