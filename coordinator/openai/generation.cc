#include "coordinator/openai/generation.h"

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

// A reply without a limit of its own ends where the context does.
constexpr int64_t kNoLimit = INT64_MAX / 2;

}  // namespace

absl::StatusOr<std::unique_ptr<Generation>> Generation::Create(GenerationApi api, const json& body,
                                                               const ServedModel& model,
                                                               uint64_t draw_seed) {
  CARAVAN_ASSIGN_OR_RETURN(GenerationRequest request, ParseGenerationRequest(api, body, model));
  return std::unique_ptr<Generation>(new Generation(std::move(request), model, draw_seed));
}

Generation::Generation(GenerationRequest request, const ServedModel& model, uint64_t draw_seed)
    : request_(std::move(request)), draws_(draw_seed) {
  frame_.api = request_.api;
  const uint64_t high = draws_();
  frame_.id = MakeId(request_.api == GenerationApi::kChat ? "chatcmpl-" : "cmpl-", high, draws_());
  frame_.model = model.name;
  frame_.created = absl::ToUnixSeconds(absl::Now());
  frame_.logprobs = request_.logprobs;
  frame_.usage_at_end = request_.include_usage;
  frame_.tokenizer = &model.text->tokenizer();
  ReplyAssembler::Options options;
  options.is_chat = request_.api == GenerationApi::kChat;
  options.stop = request_.stop;
  for (const GenerationRequest::Prompt& prompt : request_.prompts) {
    for (int i = 0; i < request_.num_choices; ++i) {
      std::optional<PromptEcho> echo;
      if (request_.echo) echo.emplace(frame_.tokenizer, &prompt, request_.logprobs);
      options.text_offset = request_.echo ? echo->num_characters() : 0;
      choices_.push_back({ReplyAssembler(*model.text, options), std::move(echo), true, 0, false});
      replies_.emplace_back();
      replies_.back().index = static_cast<int>(choices_.size()) - 1;
    }
  }
  stop_token_ids_ = request_.ignore_eos ? std::vector<int32_t>() : model.text->stop_token_ids();
}

std::vector<JobSpec> Generation::TakeSpecs() {
  std::vector<JobSpec> specs;
  for (const GenerationRequest::Prompt& prompt : request_.prompts) {
    for (int i = 0; i < request_.num_choices; ++i) {
      JobSpec spec;
      spec.prompt = prompt.token_ids;
      spec.max_new_tokens = request_.max_tokens.value_or(kNoLimit);
      spec.sampling = request_.sampling;
      // Choices of one prompt must differ, and the first be as if it were the only one.
      spec.sampling.set_seed(request_.seed.has_value() ? *request_.seed + static_cast<uint64_t>(i)
                                                       : draws_());
      spec.stop_token_ids = stop_token_ids_;
      spec.score_prompt = request_.echo && request_.logprobs;
      specs.push_back(std::move(spec));
    }
  }
  return specs;
}

bool Generation::Push(size_t index, const JobUpdate& update) {
  Choice& choice = choices_[index];
  if (choice.done) return true;
  if (update.cached_prompt_tokens > 0) choice.cached_tokens = update.cached_prompt_tokens;
  ReplyChoice growth;
  if (choice.echo.has_value()) {
    choice.echo->Push(update.prompt_scores);
    const bool at_once = !update.tokens.empty() || update.finished;
    if (std::optional<ReplyPiece> prompt = choice.echo->Take(at_once)) {
      growth.Add(*std::move(prompt));
    }
  }
  for (ReplyPiece& piece : choice.assembler.Push(update)) growth.Add(std::move(piece));
  if (choice.assembler.done()) {
    growth.finish_reason = choice.assembler.finish_reason();
    choice.done = true;
    ++num_done_;
  }
  Grow(index, std::move(growth));
  return choice.done;
}

void Generation::Grow(size_t index, ReplyChoice growth) {
  if (!request_.logprobs) {
    growth.thought_tokens.clear();
    growth.answer_tokens.clear();
  }
  if (!request_.stream) {
    ReplyChoice& reply = replies_[index];
    reply.Add({ReplyPart::kThought, growth.thought, std::move(growth.thought_tokens)});
    reply.Add({ReplyPart::kAnswer, growth.answer, std::move(growth.answer_tokens)});
    reply.finish_reason = growth.finish_reason;
    return;
  }
  // Thought and answer come in chunks of their own, and so does the end.
  ReplyChoice thought;
  thought.Add({ReplyPart::kThought, std::move(growth.thought), std::move(growth.thought_tokens)});
  ReplyChoice answer;
  answer.Add({ReplyPart::kAnswer, std::move(growth.answer), std::move(growth.answer_tokens)});
  ReplyChoice end;
  end.finish_reason = growth.finish_reason;
  for (ReplyChoice* part : {&thought, &answer, &end}) {
    if (part->empty()) continue;  // held back, or no text
    part->index = static_cast<int>(index);
    chunks_.push_back(ChunkJson(frame_, *part, std::exchange(choices_[index].first, false)));
  }
}

std::vector<json> Generation::TakeChunks() {
  CARAVAN_CHECK(request_.stream);
  if (done() && request_.include_usage && !std::exchange(usage_told_, true)) {
    chunks_.push_back(UsageChunkJson(frame_, Usage()));
  }
  return std::exchange(chunks_, {});
}

json Generation::Response() const {
  CARAVAN_CHECK(done() && !request_.stream);
  return ReplyJson(frame_, replies_, Usage());
}

ReplyUsage Generation::Usage() const {
  ReplyUsage usage;
  for (const GenerationRequest::Prompt& prompt : request_.prompts) {
    usage.prompt_tokens += static_cast<int64_t>(prompt.token_ids.size());
  }
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    usage.completion_tokens += choice.assembler.num_tokens();
    usage.thought_tokens += choice.assembler.num_thought_tokens();
    // As the prompt, once for all its choices.
    const bool first_of_prompt = i % static_cast<size_t>(request_.num_choices) == 0;
    if (first_of_prompt) usage.cached_tokens += choice.cached_tokens;
  }
  return usage;
}

}  // namespace caravan
