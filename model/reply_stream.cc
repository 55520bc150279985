#include "model/reply_stream.h"

#include <utility>

#include "absl/algorithm/container.h"

namespace caravan {

ReplyStream::ReplyStream(const Tokenizer& tokenizer, std::vector<int32_t> eos_token_ids,
                         bool starts_in_thought)
    : tokenizer_(tokenizer),
      eos_token_ids_(std::move(eos_token_ids)),
      think_begin_(tokenizer.AddedToken("<think>")),
      think_end_(tokenizer.AddedToken("</think>")),
      part_(starts_in_thought ? ReplyPart::kThought : ReplyPart::kAnswer) {}

std::vector<ReplyDelta> ReplyStream::Push(int32_t token_id) {
  if (token_id == think_begin_ || token_id == think_end_) {
    std::vector<ReplyDelta> deltas = Finish();
    deltas.push_back({ReplyPart::kThought, "", {token_id}});
    part_ = token_id == think_begin_ ? ReplyPart::kThought : ReplyPart::kAnswer;
    return deltas;
  }
  if (absl::c_linear_search(eos_token_ids_, token_id)) {
    return {{part_, utf8_.Flush(), {token_id}}};
  }
  return {{part_, utf8_.Push(tokenizer_.TokenBytes(token_id)), {token_id}}};
}

std::vector<ReplyDelta> ReplyStream::Finish() {
  std::string text = utf8_.Flush();
  if (text.empty()) return {};
  return {{part_, std::move(text), {}}};
}

}  // namespace caravan
