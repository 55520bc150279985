#include "coordinator/job.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "model/sampler.h"

namespace caravan {
namespace {

absl::Status CheckTokenIds(const std::vector<int32_t>& token_ids, int64_t vocab_size,
                           absl::string_view field) {
  for (const int32_t token_id : token_ids) {
    if (token_id < 0 || token_id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": token id ", token_id,
                                                     " is outside the vocabulary of ", vocab_size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckJobSpec(const JobSpec& spec, int64_t vocab_size, int64_t context_tokens) {
  const auto prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (prompt_tokens == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (prompt_tokens > context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", prompt_tokens, " tokens, more than the context of ", context_tokens));
  }
  if (spec.max_new_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens is ", spec.max_new_tokens, ", less than 0"));
  }
  if (spec.prompt_logits && (spec.max_new_tokens > 0 || spec.score_prompt)) {
    return absl::InvalidArgumentError(
        "a job that asks for prompt_logits does nothing else: max_new_tokens must be 0, "
        "score_prompt false");
  }
  const auto reply_tokens = static_cast<int64_t>(spec.reply.size());
  if (reply_tokens > 0 && (spec.prompt_logits || spec.score_prompt)) {
    return absl::InvalidArgumentError("a job that scores its prompt starts without a reply");
  }
  if (reply_tokens > 0 && reply_tokens >= spec.max_new_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a reply of ", reply_tokens, " tokens has reached max_new_tokens, ", spec.max_new_tokens));
  }
  CARAVAN_RETURN_IF_ERROR(CheckTokenIds(spec.prompt, vocab_size, "prompt"));
  CARAVAN_RETURN_IF_ERROR(CheckTokenIds(spec.reply, vocab_size, "reply"));
  CARAVAN_RETURN_IF_ERROR(CheckTokenIds(spec.stop_token_ids, vocab_size, "stop_token_ids"));
  return CheckSamplingParams(spec.sampling);
}

}  // namespace caravan
