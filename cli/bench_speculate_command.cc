// caravan bench speculate: what drafts are worth, at growing numbers of jobs at once.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "cli/bench_load.h"
#include "cli/commands.h"
#include "cli/local_pipeline.h"
#include "model/stored_model.h"
#include "model/text_model.h"

namespace caravan {
namespace {

struct BenchSpeculateFlags {
  LocalPipelineFlags pipeline;
  BenchLoadFlags load{{1, 8}, 10};
  double temperature = 0;
};

/// What one pipeline did at one number of jobs, over all rounds.
struct Cell {
  std::vector<double> tokens_per_s;  // one a round
  int64_t draft_tokens = 0;
  int64_t draft_accepted_tokens = 0;
};

absl::StatusOr<std::vector<JobSpec>> MakeJobs(int64_t count, const TextModel& text,
                                              double temperature, std::mt19937_64& generator) {
  std::vector<JobSpec> specs;
  for (int64_t i = 0; i < count; ++i) {
    JobSpec& spec = specs.emplace_back();
    CARAVAN_ASSIGN_OR_RETURN(spec.prompt, text.chat().Encode({{"user", DrawSum(generator)}}));
    spec.max_new_tokens = 512;
    spec.stop_token_ids = text.stop_token_ids();
    spec.sampling.set_temperature(static_cast<float>(temperature));
    spec.sampling.set_seed(generator());
  }
  return specs;
}

/// Runs all of `specs`, `at_once` at a time.
absl::Status RunCell(const std::vector<JobSpec>& specs, int at_once, PipelineDriver& driver,
                     Cell& cell) {
  const PipelineStats before = driver.stats();
  const absl::Duration start = SteadyClock().Now();
  std::vector<std::unique_ptr<JobHandle>> running;
  for (size_t i = 0; i < specs.size() + static_cast<size_t>(at_once); ++i) {
    if (i >= static_cast<size_t>(at_once)) {
      CARAVAN_RETURN_IF_ERROR(ReadReply(*running[i - static_cast<size_t>(at_once)]).status());
    }
    if (i < specs.size()) {
      CARAVAN_ASSIGN_OR_RETURN(running.emplace_back(), driver.Submit(specs[i]));
    }
  }
  const PipelineStats after = driver.stats();
  cell.tokens_per_s.push_back(
      static_cast<double>(after.generated_tokens - before.generated_tokens) /
      absl::ToDoubleSeconds(SteadyClock().Now() - start));
  cell.draft_tokens += after.draft_tokens - before.draft_tokens;
  cell.draft_accepted_tokens += after.draft_accepted_tokens - before.draft_accepted_tokens;
  return absl::OkStatus();
}

void PrintTable(const BenchSpeculateFlags& flags, const std::vector<Cell>& without,
                const std::vector<Cell>& with) {
  std::printf(
      "model %s, %d worker%s in one process, %d thread%s; replies to sums, %d a job one after the "
      "other, temperature %g; medians of %d rounds\n\n",
      flags.pipeline.model.c_str(), flags.pipeline.workers, flags.pipeline.workers == 1 ? "" : "s",
      flags.pipeline.threads, flags.pipeline.threads == 1 ? "" : "s", flags.load.requests_per_job,
      flags.temperature, flags.load.rounds);
  std::printf(
      "| jobs | tokens/s without drafts | with | ratio | drafts accepted "
      "|\n|---|---|---|---|---|\n");
  for (size_t i = 0; i < flags.load.jobs.size(); ++i) {
    const double off = Median(without[i].tokens_per_s);
    const double on = Median(with[i].tokens_per_s);
    const Cell& drafted = with[i];
    std::printf("| %d | %.0f | %.0f | %.2f | %lld of %lld (%.1f%%) |\n", flags.load.jobs[i], off,
                on, on / off, static_cast<long long>(drafted.draft_accepted_tokens),
                static_cast<long long>(drafted.draft_tokens),
                100.0 * static_cast<double>(drafted.draft_accepted_tokens) /
                    static_cast<double>(std::max<int64_t>(1, drafted.draft_tokens)));
  }
}

absl::Status BenchSpeculate(const BenchSpeculateFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model_files,
                           OpenStoredModel(flags.pipeline.model));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<TextModel> text,
                           TextModel::Load(flags.pipeline.model, model_files->config()));
  std::vector<std::unique_ptr<LocalPipeline>> pipelines;
  for (const bool speculate : {false, true}) {
    LocalPipeline::Options options = flags.pipeline.Options();
    options.LeaveHalf();  // both are there at once
    options.speculate = speculate;
    if (!speculate) options.record_routing.clear();  // two cannot write the same files
    options.kv_tokens =
        int64_t{1024} * *std::max_element(flags.load.jobs.begin(), flags.load.jobs.end());
    CARAVAN_ASSIGN_OR_RETURN(pipelines.emplace_back(),
                             LocalPipeline::Create(*model_files, options));
  }
  std::mt19937_64 generator(1);
  std::vector<std::vector<Cell>> cells(2, std::vector<Cell>(flags.load.jobs.size()));
  // In turns, so that the machine's moods meet both; a round to warm up.
  for (int round = -1; round < flags.load.rounds; ++round) {
    for (size_t j = 0; j < flags.load.jobs.size(); ++j) {
      CARAVAN_ASSIGN_OR_RETURN(const std::vector<JobSpec> specs,
                               MakeJobs(int64_t{flags.load.jobs[j]} * flags.load.requests_per_job,
                                        *text, flags.temperature, generator));
      for (size_t p = 0; p < pipelines.size(); ++p) {
        Cell warm_up;
        CARAVAN_RETURN_IF_ERROR(RunCell(specs, flags.load.jobs[j], pipelines[p]->driver(),
                                        round < 0 ? warm_up : cells[p][j]));
      }
    }
  }
  PrintTable(flags, cells[0], cells[1]);
  return absl::OkStatus();
}

}  // namespace

void AddBenchSpeculateCommand(CLI::App& bench, CommandBody& body) {
  CLI::App* const command = bench.add_subcommand(
      "speculate", "Compare replies with and without drafts, by pipelines within this process");
  const auto flags = std::make_shared<BenchSpeculateFlags>();
  AddConfigOption(*command);
  flags->pipeline.AddTo(*command);
  CLI::Option* const ram = command->get_option("--ram");
  ram->description(ram->get_description() + "; replies with drafts and without have half each");
  flags->load.AddTo(*command, 512);
  command->add_option("--temperature", flags->temperature, "0: the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(BenchSpeculate(*flags)); }; });
}

}  // namespace caravan
