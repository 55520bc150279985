// caravan eval: how good is a model? By questions, by a text, and by another model.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/eval_task.h"
#include "cli/local_pipeline.h"
#include "cli/task_score.h"
#include "cli/text_flags.h"
#include "cli/text_score.h"
#include "cli/validators.h"
#include "model/text_model.h"
#include "model/text_windows.h"

namespace caravan {
namespace {

struct EvalFlags {
  LocalPipelineFlags pipeline;
  std::string tasks;
  TaskScoreOptions asking;
  bool speculate = false;
  std::string text;
  std::string against;
  std::optional<int64_t> window;  // tokens
};

void PrintShare(int right, int total) {
  std::printf("%5d / %-5d %6.1f%%", right, total, 100.0 * right / total);
}

/// A row a task, and one of all.
void PrintScores(const std::map<std::string, TaskScore>& scores, bool choices) {
  size_t width = 16;
  for (const auto& [name, score] : scores) width = std::max(width, name.size());
  const auto print = [&](const std::string& name, const TaskScore& score) {
    std::printf("%-*s ", static_cast<int>(width), name.c_str());
    PrintShare(score.right, score.total);
    if (choices) {
      std::printf("  by bytes ");
      PrintShare(score.right_per_byte, score.total);
    }
    std::printf("\n");
  };
  if (scores.empty()) return;
  TaskScore all;
  for (const auto& [name, score] : scores) {
    print(name, score);
    all.total += score.total;
    all.right += score.right;
    all.right_per_byte += score.right_per_byte;
  }
  print(choices ? "all choices" : "all", all);
}

absl::Status EvalTasks(const EvalFlags& flags, const std::vector<EvalTask>& tasks,
                       const TextModel& text, PipelineDriver& driver) {
  CARAVAN_ASSIGN_OR_RETURN(const TaskScores scores, ScoreTasks(tasks, text, driver, flags.asking));
  PrintScores(scores.answers, /*choices=*/false);
  PrintScores(scores.choices, /*choices=*/true);
  if (flags.speculate) {
    const PipelineStats stats = driver.stats();
    std::printf("drafts accepted: %lld of %lld\n",
                static_cast<long long>(stats.draft_accepted_tokens),
                static_cast<long long>(stats.draft_tokens));
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

/// Longest sequence, in tokens.
int64_t ContextOf(const EvalFlags& flags, const ModelConfig& config) {
  return flags.pipeline.context > 0 ? flags.pipeline.context : config.max_position_embeddings;
}

/// Of the model, or of that at --against: two models share --ram, which is the process's.
LocalPipeline::Options PipelineOptions(const EvalFlags& flags) {
  LocalPipeline::Options options = flags.pipeline.Options();
  if (!flags.against.empty()) options.LeaveHalf();
  return options;
}

absl::StatusOr<std::unique_ptr<StoredModel>> OpenReference(const EvalFlags& flags,
                                                           const ModelConfig& config,
                                                           int64_t window) {
  const std::string& path = flags.against;
  absl::StatusOr<std::unique_ptr<StoredModel>> files = OpenStoredModel(path);
  if (!files.ok()) return Annotate(files.status(), "--against");
  const ModelConfig& other = (*files)->config();
  if (other.vocab_size != config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("--against ", path, ": a vocabulary of ", other.vocab_size,
                     " tokens cannot be compared with --model's of ", config.vocab_size));
  }
  if (other.max_position_embeddings < window) {
    return absl::InvalidArgumentError(
        absl::StrCat("--against ", path, ": a context of ", other.max_position_embeddings,
                     " tokens is shorter than the window of ", window));
  }
  const absl::Status fits = LocalPipeline::CheckOptions(**files, flags.pipeline.Options());
  if (!fits.ok()) return Annotate(fits, "--against");
  return files;
}

void PrintText(const TextScore& score, bool compared) {
  const auto print = [](const char* name, double value, const char* unit = "") {
    std::printf("%-32s %12.6g%s\n", name, value, unit);
  };
  std::printf("%-32s %12lld\n", "tokens scored", static_cast<long long>(score.model.tokens()));
  print("mean negative log-likelihood", score.model.mean_nll(), " nats a token");
  print("perplexity", score.model.perplexity());
  if (!compared) return;
  print("the same of --against", score.reference.mean_nll(), " nats a token");
  print("perplexity of --against", score.reference.perplexity());
  print("mean KL divergence", score.divergence.mean(), " nats a token");
  print("largest KL divergence", score.divergence.largest(), " nats");
  print("top-1 agreement", 100 * score.divergence.top1_agreement(), " %");
}

absl::Status EvalText(const EvalFlags& flags, TextWindows windows, PipelineDriver& driver,
                      const StoredModel* reference_files) {
  std::unique_ptr<LocalPipeline> reference;
  if (reference_files != nullptr) {
    LocalPipeline::Options options = PipelineOptions(flags);
    options.record_routing.clear();  // --model's is recorded
    absl::StatusOr<std::unique_ptr<LocalPipeline>> created =
        LocalPipeline::Create(*reference_files, options);
    if (!created.ok()) return Annotate(created.status(), "--against");
    reference = *std::move(created);
  }
  const absl::StatusOr<TextScore> score =
      ScoreText(std::move(windows), driver, reference == nullptr ? nullptr : &reference->driver());
  if (!score.ok()) return Annotate(score.status(), absl::StrCat("--text ", flags.text));
  PrintText(*score, reference != nullptr);
  return absl::OkStatus();
}

absl::Status Eval(const EvalFlags& flags) {
  // What is wrong with flags and files is said before anything is computed.
  std::vector<EvalTask> tasks;
  if (!flags.tasks.empty()) {
    absl::StatusOr<std::vector<EvalTask>> read = ReadEvalTasks(flags.tasks);
    if (!read.ok()) return Annotate(read.status(), "--tasks");
    tasks = *std::move(read);
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> files,
                           OpenStoredModel(flags.pipeline.model));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<TextModel> text,
                           TextModel::Load(flags.pipeline.model, files->config()));
  std::optional<TextWindows> windows;
  std::unique_ptr<StoredModel> reference;
  if (!flags.text.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(
        const int64_t window,
        WindowTokens(flags.window, ContextOf(flags, files->config()),
                     flags.pipeline.context > 0 ? "--context" : "model's context"));
    CARAVAN_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                             ReadTextTokens(flags.text, text->tokenizer()));
    windows.emplace(*text, std::move(ids), window);
    if (!flags.against.empty()) {
      CARAVAN_ASSIGN_OR_RETURN(reference, OpenReference(flags, files->config(), window));
    }
  }

  LocalPipeline::Options options = PipelineOptions(flags);
  if (!tasks.empty()) {
    options.kv_tokens = flags.asking.jobs * ContextOf(flags, files->config());
  }
  options.speculate = flags.speculate;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<LocalPipeline> pipeline,
                           LocalPipeline::Create(*files, options));
  if (!tasks.empty()) {
    CARAVAN_RETURN_IF_ERROR(EvalTasks(flags, tasks, *text, pipeline->driver()));
  }
  if (!windows.has_value()) return absl::OkStatus();
  return EvalText(flags, *std::move(windows), pipeline->driver(), reference.get());
}

}  // namespace

void AddEvalCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "eval", "Print how many questions a model answers right, and how well it foretells a text");
  const auto flags = std::make_shared<EvalFlags>();
  AddConfigOption(*command);
  flags->pipeline.AddTo(*command);
  CLI::Option* const ram = command->get_option("--ram");
  ram->description(ram->get_description() + "; with --against each of the two models has half");
  command
      ->add_option(
          "--tasks", flags->tasks,
          "JSON lines with task, question and answer: what the reply says after </think>, without "
          "space around, must equal the answer. With choices too, an array of strings, the answer "
          "is the index of the right one from 0, or its text: it must be the likeliest")
      ->check(NotEmpty());
  command
      ->add_option("--jobs", flags->asking.jobs,
                   "Jobs at once, each a question or one of its choices")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--max-tokens", flags->asking.max_tokens, "Longest reply, in tokens")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  AddSpeculateOption(*command, flags->speculate);
  CLI::Option* const text = command->add_option(
      "--text", flags->text, "UTF-8 file: print the model's perplexity on it, window by window");
  text->check(NotEmpty());
  command
      ->add_option("--window", flags->window,
                   "Tokens read at once, the one that begins texts included; at most the model's "
                   "context")
      ->check(CLI::Range(2, 1 << 24))
      ->default_str(absl::StrCat(kDefaultWindow))
      ->needs(text);
  command
      ->add_option("--against", flags->against,
                   "A second model, such as the one before quantizing: print the KL divergence of "
                   "--model from it, in nats a token of --text, and how often both find the same "
                   "token likeliest")
      ->check(NotEmpty())
      ->needs(text);
  command->callback([flags, &body] {
    if (flags->tasks.empty() && flags->text.empty()) throw CLI::RequiredError("--tasks or --text");
    body = [flags] { return ReportStatus(Eval(*flags)); };
  });
}

}  // namespace caravan
