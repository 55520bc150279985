// caravan eval: how many of a file's questions does the model answer right?

#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/local_pipeline.h"
#include "model/text_model.h"

namespace caravan {
namespace {

// Of a file of tasks; far more than anybody asks.
constexpr int64_t kMaxTasksBytes = int64_t{1} << 30;

struct EvalFlags {
  LocalPipelineFlags pipeline;
  std::string tasks;
  int jobs = 8;
  int64_t max_tokens = 512;
  bool speculate = false;
};

struct Task {
  std::string task;
  std::string question;
  std::string answer;
};

struct Score {
  int right = 0;
  int total = 0;
};

absl::StatusOr<std::vector<Task>> ReadTasks(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTasksBytes));
  std::vector<Task> tasks;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const std::string origin = absl::StrCat(path, ":", number);
    CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(line, origin));
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, origin));
    Task task;
    CARAVAN_ASSIGN_OR_RETURN(task.task, fields.String("task", "all"));
    CARAVAN_ASSIGN_OR_RETURN(task.question, fields.String("question"));
    CARAVAN_ASSIGN_OR_RETURN(task.answer, fields.String("answer"));
    tasks.push_back(std::move(task));
  }
  if (tasks.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no tasks"));
  return tasks;
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

/// Asks every question, `flags.jobs` at a time.
absl::StatusOr<std::map<std::string, Score>> AskAll(const std::vector<Task>& tasks,
                                                    const TextModel& text, PipelineDriver& driver,
                                                    const EvalFlags& flags) {
  std::map<std::string, Score> scores;
  std::deque<std::unique_ptr<JobHandle>> running;  // of tasks [answered, submitted)
  size_t submitted = 0;
  for (const Task& task : tasks) {
    while (submitted < tasks.size() && running.size() < static_cast<size_t>(flags.jobs)) {
      JobSpec spec;
      CARAVAN_ASSIGN_OR_RETURN(spec.prompt,
                               text.chat().Encode({{"user", tasks[submitted].question}}));
      spec.max_new_tokens = flags.max_tokens;
      spec.stop_token_ids = text.stop_token_ids();
      CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<JobHandle> job, driver.Submit(std::move(spec)));
      running.push_back(std::move(job));
      ++submitted;
    }
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<int32_t> reply, ReadReply(*running.front()));
    running.pop_front();
    Score& score = scores[task.task];
    ++score.total;
    if (AnswerText(text, reply) == absl::StripAsciiWhitespace(task.answer)) ++score.right;
  }
  return scores;
}

void PrintScore(const std::string& name, const Score& score) {
  std::printf("%-16s %5d / %-5d %6.1f%%\n", name.c_str(), score.right, score.total,
              100.0 * score.right / score.total);
}

absl::Status Eval(const EvalFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<Task> tasks, ReadTasks(flags.tasks));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model_files,
                           OpenStoredModel(flags.pipeline.model));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<TextModel> text,
                           TextModel::Load(flags.pipeline.model, model_files->config()));
  LocalPipeline::Options options = flags.pipeline.Options();
  options.kv_tokens = flags.jobs * model_files->config().max_position_embeddings;
  options.speculate = flags.speculate;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<LocalPipeline> pipeline,
                           LocalPipeline::Create(*model_files, options));
  CARAVAN_ASSIGN_OR_RETURN(const auto scores, AskAll(tasks, *text, pipeline->driver(), flags));
  Score all;
  for (const auto& [name, score] : scores) {
    PrintScore(name, score);
    all.right += score.right;
    all.total += score.total;
  }
  PrintScore("all", all);
  if (flags.speculate) {
    const PipelineStats stats = pipeline->driver().stats();
    std::printf("drafts accepted: %lld of %lld\n",
                static_cast<long long>(stats.draft_accepted_tokens),
                static_cast<long long>(stats.draft_tokens));
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("eval", "Print the exact-match accuracy of a model's answers by task");
  const auto flags = std::make_shared<EvalFlags>();
  AddConfigOption(*command);
  flags->pipeline.AddTo(*command);
  command
      ->add_option("--tasks", flags->tasks,
                   "JSON lines with task, question and answer; what the reply says after </think>, "
                   "without space around, must equal the answer")
      ->required();
  command->add_option("--jobs", flags->jobs, "Questions asked at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--max-tokens", flags->max_tokens, "Longest reply, in tokens")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  AddSpeculateOption(*command, flags->speculate);
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Eval(*flags)); }; });
}

}  // namespace caravan
