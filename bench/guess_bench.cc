// How often guesses of the next layer's experts come true, and what they are worth: replies of a
// trained model, packed, whose experts stay on disk.
//
//   guess_bench --model DIR --tasks FILE [--questions 60] [--share 0.125,0.25,0.5] [--threads 2]
//
// The questions of FILE, a JSON object with `question` a line, are answered one after the other,
// greedily, by one stage with as many slots as the share of all experts says: without guesses, with
// them, and with GuessGate's choice, in turns question by question. Only steps of one row count.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "bench/must_be.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/pipeline_plan.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/stored_model.h"
#include "model/text_model.h"
#include "nlohmann/json.hpp"
#include "worker/experts/expert_files.h"
#include "worker/experts/expert_store.h"
#include "worker/stage.h"

namespace caravan {
namespace {

constexpr int kMaxRows = 512;
constexpr int kMaxReply = 64;  // tokens

struct Flags {
  std::string model;
  std::string tasks;
  int questions = 60;
  std::vector<double> shares = {0.125, 0.25, 0.5};
  int threads = 2;
};

struct Way {
  const char* name;
  ExpertStore::Guesses guesses;
};
constexpr Way kWays[] = {{"never", ExpertStore::Guesses::kNever},
                         {"always", ExpertStore::Guesses::kAlways},
                         {"where they pay", ExpertStore::Guesses::kWhereTheyPay}};

/// Of steps of one row.
struct Totals {
  int64_t steps = 0;
  absl::Duration time;
  ExpertStore::Counters experts;

  void Add(const ExpertStore::Counters& before, const ExpertStore::Counters& after) {
    experts.hits += after.hits - before.hits;
    experts.misses += after.misses - before.misses;
    experts.bytes_read += after.bytes_read - before.bytes_read;
    experts.guesses += after.guesses - before.guesses;
    experts.guesses_used += after.guesses_used - before.guesses_used;
    experts.guessable += after.guessable - before.guessable;
    experts.bytes_wasted += after.bytes_wasted - before.bytes_wasted;
    experts.waited += after.waited - before.waited;
  }
};

std::vector<std::string> ReadQuestions(const std::string& path) {
  std::vector<std::string> questions;
  const std::string text = MustBe(ReadFile(path, int64_t{1} << 28));
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const nlohmann::json task = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto question = task.find("question");
    if (!task.is_object() || question == task.end() || !question->is_string()) {
      MustBe(absl::InvalidArgumentError(absl::StrCat(path, ": a line has no question: ", line)));
    }
    questions.push_back(question->get<std::string>());
  }
  return questions;
}

/// One question's reply.
void Answer(Stage& stage, const std::vector<int32_t>& prompt,
            const std::vector<int32_t>& stop_token_ids, Totals& totals) {
  std::vector<int32_t> ids = prompt;
  uint32_t position = 0;
  for (int i = 0; i < kMaxReply; ++i) {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(1);
    slice.set_first_position(position);
    slice.mutable_token_ids()->Add(ids.begin(), ids.end());
    slice.set_output(v1::SLICE_OUTPUT_SAMPLE);
    slice.mutable_sampling();
    position += static_cast<uint32_t>(ids.size());
    const uint32_t blocks = position / kKvBlockTokens + 1;
    for (uint32_t block = 0; block < blocks; ++block) slice.add_kv_blocks(block);
    const ExpertStore::Counters before = stage.experts()->counters();
    const absl::Duration begin = SteadyClock().Now();
    step = stage.Run(std::move(step));
    const absl::Duration took = SteadyClock().Now() - begin;
    if (step.has_error()) MustBe(absl::InternalError(step.error().message()));
    if (ids.size() == 1) {
      ++totals.steps;
      totals.time += took;
      totals.Add(before, stage.experts()->counters());
    }
    ids = {static_cast<int32_t>(step.results(0).sampled(0).token_id())};
    for (const int32_t stop : stop_token_ids) {
      if (ids[0] == stop) return;
    }
  }
}

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

void PrintRow(double share, int slots, const Way& way, const Totals& totals) {
  const ExpertStore::Counters& experts = totals.experts;
  const auto a_token = [&](int64_t count) {
    return static_cast<double>(count) / static_cast<double>(totals.steps);
  };
  std::printf("| %.1f%% (%d) | %s | %.0f%% | %.1f | ", 100 * share, slots, way.name,
              Share(experts.hits, experts.hits + experts.misses), a_token(experts.guesses));
  if (experts.guesses == 0) {
    std::printf("- | - ");
  } else {
    std::printf("%.0f%% | %.0f%% ", Share(experts.guesses_used, experts.guesses),
                Share(experts.guesses_used, experts.guessable));
  }
  std::printf("| %.0f | %.0f | %.2f | %.2f |\n", a_token(experts.bytes_read) / 1024,
              a_token(experts.bytes_wasted) / 1024,
              1e3 * absl::ToDoubleSeconds(experts.waited) / static_cast<double>(totals.steps),
              1e3 * absl::ToDoubleSeconds(totals.time) / static_cast<double>(totals.steps));
}

void Run(const Flags& flags) {
  const std::unique_ptr<StoredModel> model = MustBe(OpenStoredModel(flags.model));
  const ModelConfig& config = model->config();
  const std::unique_ptr<TextModel> text = MustBe(TextModel::Load(flags.model, config));
  const std::vector<std::string> questions = ReadQuestions(flags.tasks);
  const StageSpec whole = {0, static_cast<int>(config.num_hidden_layers), true, true, false};
  const std::unique_ptr<ExpertFiles> files = MustBe(ExpertFiles::Open(config, whole, *model));
  std::printf(
      "| slots | guesses | hits | guesses a token | precision | recall | KiB read a token | wasted "
      "| ms waited a token | ms a token |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const double share : flags.shares) {
    std::vector<std::unique_ptr<Stage>> stages;
    for (const Way& way : kWays) {
      Stage::Options options;
      options.kv_budget_bytes = int64_t{256} << 20;
      options.max_step_tokens = kMaxRows;
      options.expert_budget_bytes =
          static_cast<int64_t>(share * static_cast<double>(files->num_experts())) *
          files->max_run_bytes();
      options.experts.guesses = way.guesses;
      stages.push_back(MustBe(Stage::Create(config, whole, *model,
                                            MustBe(MakeCpuBackend({.num_threads = flags.threads})),
                                            options, [](int64_t, int64_t) { return true; })));
    }
    std::vector<Totals> totals(stages.size());
    for (size_t i = 0; i < questions.size() && i < static_cast<size_t>(flags.questions); ++i) {
      // Spread over the file, which has kinds of questions one after the other.
      const std::string& question =
          questions[i * questions.size() / static_cast<size_t>(flags.questions)];
      const std::vector<int32_t> prompt = MustBe(text->chat().Encode({{"user", question}}));
      for (size_t s = 0; s < stages.size(); ++s) {
        Answer(*stages[s], prompt, text->stop_token_ids(), totals[s]);
      }
    }
    for (size_t s = 0; s < stages.size(); ++s) {
      PrintRow(share, stages[s]->experts()->num_slots(), kWays[s], totals[s]);
    }
  }
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Flags flags;
  CLI::App app("Guesses of the next layer's experts: how many come true, and what they are worth");
  app.add_option("--model", flags.model, "A packed model")->required();
  app.add_option("--tasks", flags.tasks, "A JSON object with `question` a line")->required();
  app.add_option("--questions", flags.questions, "How many of them")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--share", flags.shares, "Slots, as shares of all experts")
      ->delimiter(',')
      ->check(CLI::Range(0.01, 0.99))
      ->capture_default_str();
  app.add_option("--threads", flags.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  caravan::Run(flags);
  return 0;
}
