#include "coordinator/batch/running_line.h"

#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "coordinator/openai/request_fields.h"
#include "model/scored_token.h"

namespace caravan {
namespace {

JobUpdate ToUpdate(const v1::StoredGrowth& growth) {
  JobUpdate update;
  for (const v1::TokenScore& token : growth.tokens()) update.tokens.push_back(FromProto(token));
  update.cached_prompt_tokens = static_cast<int64_t>(growth.cached_prompt_tokens());
  update.reason = growth.finish_reason();
  update.finished = update.reason != v1::FINISH_REASON_UNSPECIFIED;
  return update;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunningLine>> RunningLine::Create(
    LineRef where, const BatchLine& line, GenerationApi api, const ServedModel& model,
    absl::Span<const LineGrowth> growth) {
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json body, ParseRequestBody(line.body));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation,
                           Generation::Create(api, body, model, line.draw_seed));
  if (generation->streams()) return ParamError("stream", "must be false in a batch");
  std::unique_ptr<RunningLine> running(
      new RunningLine(where, line.custom_id, std::move(generation)));
  for (const LineGrowth& each : growth) {
    const auto index = static_cast<size_t>(each.choice);
    // What does not fit is not ours: generate it again.
    if (index >= running->num_choices()) continue;
    Choice& choice = running->choices_[index];
    if (choice.done || each.position != choice.recorded_tokens) continue;
    running->TakeIn(index, ToUpdate(each.growth));
    choice.recorded_tokens += each.growth.tokens_size();
  }
  return running;
}

RunningLine::RunningLine(LineRef where, std::string custom_id,
                         std::unique_ptr<Generation> generation)
    : where_(where), custom_id_(std::move(custom_id)), generation_(std::move(generation)) {
  for (JobSpec& spec : generation_->TakeSpecs()) {
    spec.priority = JobPriority::kBulk;
    if (spec.score_prompt) resumable_ = false;
    choices_.emplace_back().spec = std::move(spec);
  }
}

JobSpec RunningLine::NextJob(size_t choice) const {
  CARAVAN_CHECK(!choices_[choice].done);
  return choices_[choice].spec;
}

void RunningLine::TakeIn(size_t index, const JobUpdate& update) {
  Choice& choice = choices_[index];
  for (const ScoredToken& token : update.tokens) choice.spec.reply.push_back(token.token_id);
  choice.done = generation_->Push(index, update);
}

bool RunningLine::Push(size_t index, const JobUpdate& update) {
  Choice& choice = choices_[index];
  if (choice.done) return true;
  TakeIn(index, update);
  if (!resumable_) return choice.done;
  for (const ScoredToken& token : update.tokens) *choice.unrecorded.add_tokens() = ToProto(token);
  if (update.cached_prompt_tokens > 0) {
    choice.unrecorded.set_cached_prompt_tokens(static_cast<uint64_t>(update.cached_prompt_tokens));
  }
  if (update.finished) choice.unrecorded.set_finish_reason(update.reason);
  choice.has_unrecorded |= !update.tokens.empty() || update.finished;
  return choice.done;
}

void RunningLine::AddGrowth(std::vector<LineGrowth>& growth) const {
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    if (!choice.has_unrecorded) continue;
    growth.push_back({where_, static_cast<int64_t>(i), choice.recorded_tokens, choice.unrecorded});
  }
}

void RunningLine::MarkRecorded() {
  for (Choice& choice : choices_) {
    choice.recorded_tokens += choice.unrecorded.tokens_size();
    choice.unrecorded.Clear();
    choice.has_unrecorded = false;
  }
}

}  // namespace caravan
