#include "coordinator/openai/response_json.h"

#include <iterator>
#include <utility>

#include "coordinator/openai/logprobs_json.h"

namespace caravan {
namespace {

using nlohmann::json;

json Frame(const ReplyFrame& frame, bool is_chunk, json choices) {
  const char* const object = frame.api == GenerationApi::kCompletion ? "text_completion"
                             : is_chunk                              ? "chat.completion.chunk"
                                                                     : "chat.completion";
  return {{"id", frame.id},
          {"object", object},
          {"created", frame.created},
          {"model", frame.model},
          {"choices", std::move(choices)}};
}

json FinishReason(const ReplyChoice& choice) {
  return choice.finish_reason == nullptr ? json(nullptr) : json(choice.finish_reason);
}

json Logprobs(const ReplyFrame& frame, const ReplyChoice& choice) {
  if (!frame.logprobs) return nullptr;
  if (frame.api == GenerationApi::kCompletion) {
    return CompletionLogprobsJson(*frame.tokenizer, choice.answer_tokens);
  }
  return ChatLogprobsJson(*frame.tokenizer, choice.thought_tokens, choice.answer_tokens);
}

json ChoiceJson(const ReplyFrame& frame, const ReplyChoice& choice) {
  json out = {{"index", choice.index},
              {"logprobs", Logprobs(frame, choice)},
              {"finish_reason", FinishReason(choice)}};
  if (frame.api == GenerationApi::kCompletion) {
    out["text"] = choice.answer;
    return out;
  }
  json& message = out["message"];
  message = {{"role", "assistant"}, {"content", choice.answer}, {"refusal", nullptr}};
  message["reasoning_content"] = choice.thought.empty() ? json(nullptr) : json(choice.thought);
  return out;
}

json GrowthJson(const ReplyFrame& frame, const ReplyChoice& growth, bool is_first) {
  json out = {
      {"index", growth.index}, {"logprobs", nullptr}, {"finish_reason", FinishReason(growth)}};
  if (!growth.answer_tokens.empty() || !growth.thought_tokens.empty()) {
    out["logprobs"] = Logprobs(frame, growth);
  }
  if (frame.api == GenerationApi::kCompletion) {
    out["text"] = growth.answer;
    return out;
  }
  json& delta = out["delta"];
  delta = json::object();
  if (is_first) delta["role"] = "assistant";
  if (!growth.thought.empty()) delta["reasoning_content"] = growth.thought;
  if (!growth.answer.empty() || is_first) delta["content"] = growth.answer;
  return out;
}

}  // namespace

void ReplyChoice::Add(ReplyPiece piece) {
  const bool is_thought = piece.part == ReplyPart::kThought;
  (is_thought ? thought : answer) += piece.text;
  std::vector<ReplyToken>& tokens = is_thought ? thought_tokens : answer_tokens;
  tokens.insert(tokens.end(), std::make_move_iterator(piece.tokens.begin()),
                std::make_move_iterator(piece.tokens.end()));
}

json UsageJson(const ReplyUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.thought_tokens}}}};
}

json ReplyJson(const ReplyFrame& frame, const std::vector<ReplyChoice>& choices,
               const ReplyUsage& usage) {
  json list = json::array();
  for (const ReplyChoice& choice : choices) list.push_back(ChoiceJson(frame, choice));
  json reply = Frame(frame, false, std::move(list));
  reply["usage"] = UsageJson(usage);
  return reply;
}

json ChunkJson(const ReplyFrame& frame, const ReplyChoice& growth, bool is_first) {
  json chunk = Frame(frame, true, json::array({GrowthJson(frame, growth, is_first)}));
  if (frame.usage_at_end) chunk["usage"] = nullptr;
  return chunk;
}

json UsageChunkJson(const ReplyFrame& frame, const ReplyUsage& usage) {
  json chunk = Frame(frame, true, json::array());
  chunk["usage"] = UsageJson(usage);
  return chunk;
}

}  // namespace caravan
