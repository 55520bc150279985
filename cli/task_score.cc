#include "cli/task_score.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "base/status_macros.h"
#include "cli/choice_scores.h"
#include "cli/local_pipeline.h"

namespace caravan {
namespace {

/// One job: a task's question, or the question with one of its choices.
struct Request {
  const EvalTask* task;
  size_t choice = 0;
  size_t choice_tokens = 0;  // once submitted
  std::unique_ptr<JobHandle> job;
};

absl::Status Submit(const TextModel& text, PipelineDriver& driver, const TaskScoreOptions& options,
                    Request& request) {
  const EvalTask& task = *request.task;
  JobSpec spec;
  if (task.prompt.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(spec.prompt, text.chat().Encode({{"user", task.question}}));
  } else {
    CARAVAN_ASSIGN_OR_RETURN(spec.prompt, text.tokenizer().Encode(task.prompt));
    text.BeginText(spec.prompt);
  }
  if (task.choices.empty()) {
    spec.max_new_tokens = options.max_tokens;
    spec.stop_token_ids = text.stop_token_ids();
  } else {
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<int32_t> choice,
                             text.tokenizer().Encode(task.choices[request.choice]));
    if (spec.prompt.empty() || choice.empty()) {
      return absl::InvalidArgumentError("the prompt or a choice has no tokens");
    }
    request.choice_tokens = choice.size();
    spec.prompt.insert(spec.prompt.end(), choice.begin(), choice.end());
    spec.score_prompt = true;
  }
  CARAVAN_ASSIGN_OR_RETURN(request.job, driver.Submit(std::move(spec)));
  return absl::OkStatus();
}

/// What the reply answers: its text past the thought, without space around.
std::string AnswerText(const TextModel& text, const std::vector<int32_t>& reply) {
  ReplyStream stream = text.NewReply();
  std::string answer;
  const auto collect = [&answer](const std::vector<ReplyDelta>& deltas) {
    for (const ReplyDelta& delta : deltas) {
      if (delta.part == ReplyPart::kAnswer) answer += delta.text;
    }
  };
  for (const int32_t token : reply) collect(stream.Push(token));
  collect(stream.Finish());
  return std::string(absl::StripAsciiWhitespace(answer));
}

absl::Status CountAnswer(const TextModel& text, const Request& request, TaskScore& score) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<int32_t> reply, ReadReply(*request.job));
  ++score.total;
  if (AnswerText(text, reply) == absl::StripAsciiWhitespace(request.task->answer)) ++score.right;
  return absl::OkStatus();
}

/// `scores`: of the task's choices before this one; none again after the last.
absl::Status CountChoice(const Request& request, ChoiceScores& scores, TaskScore& score) {
  const EvalTask& task = *request.task;
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<ScoredToken> tokens, ReadPromptScores(*request.job));
  scores.Add(task.choices[request.choice], tokens, request.choice_tokens);
  if (request.choice + 1 < task.choices.size()) return absl::OkStatus();
  ++score.total;
  if (scores.Best() == task.right_choice) ++score.right;
  if (scores.BestPerByte() == task.right_choice) ++score.right_per_byte;
  scores = ChoiceScores();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TaskScores> ScoreTasks(const std::vector<EvalTask>& tasks, const TextModel& text,
                                      PipelineDriver& driver, const TaskScoreOptions& options) {
  std::deque<Request> waiting;
  for (const EvalTask& task : tasks) {
    const size_t count = std::max<size_t>(1, task.choices.size());
    for (size_t choice = 0; choice < count; ++choice)
      waiting.push_back({&task, choice, 0, nullptr});
  }
  TaskScores scores;
  ChoiceScores choices;  // of the task that is being read
  std::deque<Request> running;
  while (!waiting.empty() || !running.empty()) {
    while (!waiting.empty() && running.size() < static_cast<size_t>(options.jobs)) {
      Request& request = waiting.front();
      const absl::Status submitted = Submit(text, driver, options, request);
      if (!submitted.ok()) return Annotate(submitted, request.task->origin);
      running.push_back(std::move(request));
      waiting.pop_front();
    }
    const Request& request = running.front();
    const EvalTask& task = *request.task;
    const absl::Status counted = task.choices.empty()
                                     ? CountAnswer(text, request, scores.answers[task.task])
                                     : CountChoice(request, choices, scores.choices[task.task]);
    if (!counted.ok()) return Annotate(counted, task.origin);
    running.pop_front();
  }
  return scores;
}

}  // namespace caravan
