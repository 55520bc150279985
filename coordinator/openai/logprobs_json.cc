#include "coordinator/openai/logprobs_json.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

using nlohmann::json;

// JSON has no infinity; OpenAI writes this for a token that cannot be.
constexpr double kImpossible = -9999;

json LogprobJson(float log_probability) {
  return std::isfinite(log_probability) ? static_cast<double>(log_probability) : kImpossible;
}

/// {token, logprob, bytes}
json ChatEntry(const Tokenizer& tokenizer, int32_t token_id, float log_probability) {
  const absl::string_view bytes = tokenizer.TokenBytes(token_id);
  Utf8Stream utf8;
  std::string text = utf8.Push(bytes);
  text += utf8.Flush();
  json list = json::array();
  for (const char byte : bytes) list.push_back(static_cast<uint8_t>(byte));
  return {{"token", text}, {"logprob", LogprobJson(log_probability)}, {"bytes", list}};
}

json ChatEntries(const Tokenizer& tokenizer, const std::vector<ReplyToken>& tokens) {
  json entries = json::array();
  for (const ReplyToken& token : tokens) {
    json entry = ChatEntry(tokenizer, token.scored.token_id, token.scored.log_probability);
    json& top = entry["top_logprobs"];
    top = json::array();
    for (const ScoredToken::Alternative& alternative : token.scored.alternatives) {
      top.push_back(ChatEntry(tokenizer, alternative.token_id, alternative.log_probability));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string CompletionSpelling(const Tokenizer& tokenizer, int32_t token_id) {
  const absl::string_view bytes = tokenizer.TokenBytes(token_id);
  if (!FindInvalidUtf8(bytes).has_value()) return std::string(bytes);
  std::string spelling = "bytes:";
  for (const char byte : bytes) {
    absl::StrAppend(&spelling, "\\x", absl::Hex(static_cast<uint8_t>(byte), absl::kZeroPad2));
  }
  return spelling;
}

}  // namespace

json ChatLogprobsJson(const Tokenizer& tokenizer, const std::vector<ReplyToken>& thought_tokens,
                      const std::vector<ReplyToken>& answer_tokens) {
  return {{"content", ChatEntries(tokenizer, answer_tokens)},
          {"reasoning_content", ChatEntries(tokenizer, thought_tokens)},
          {"refusal", nullptr}};
}

json CompletionLogprobsJson(const Tokenizer& tokenizer, const std::vector<ReplyToken>& tokens) {
  json spellings = json::array();
  json logprobs = json::array();
  json tops = json::array();
  json offsets = json::array();
  for (const ReplyToken& token : tokens) {
    const std::string spelling = CompletionSpelling(tokenizer, token.scored.token_id);
    spellings.push_back(spelling);
    offsets.push_back(token.text_offset);
    if (!token.has_score) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(LogprobJson(token.scored.log_probability));
    // Of two tokens that are spelt alike the likelier stays.
    json top = json::object();
    for (const ScoredToken::Alternative& alternative : token.scored.alternatives) {
      top.emplace(CompletionSpelling(tokenizer, alternative.token_id),
                  LogprobJson(alternative.log_probability));
    }
    top.emplace(spelling, logprobs.back());
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(spellings)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

}  // namespace caravan
