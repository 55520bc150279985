// caravan bench serve: how much many clients of the HTTP API get through pipelines of real
// processes, at growing numbers of jobs at once, and how evenly.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "cli/bench_cluster.h"
#include "cli/bench_load.h"
#include "cli/commands.h"
#include "cli/load_client.h"
#include "cli/stand_in_tokenizer.h"
#include "cli/xy_chart.h"
#include "model/stored_model.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

struct BenchServeFlags {
  std::string model;
  std::vector<int> workers = {1, 2, 3};
  BenchLoadFlags load{{1, 2, 4, 8, 16, 32, 64}, 3};
  int threads = 1;
  DType kv_dtype = DType::kF32;
  CpuIsa isa = CpuIsa::kAuto;
  uint64_t seed = 1;
  int max_tokens = 512;
  bool pin = false;
  bool whole = false;
  std::vector<std::string> coordinator_arguments;
};

/// What one cluster did at one number of jobs, over all rounds.
struct Cell {
  std::vector<double> tokens_per_s;  // one a round
  std::vector<double> first_text_ms;
  std::vector<double> gaps_ms;
};

std::vector<std::string> MakeBodies(int64_t count, const BenchServeFlags& flags,
                                    bool random_weights, std::mt19937_64& generator) {
  std::vector<std::string> bodies;
  for (int64_t i = 0; i < count; ++i) {
    nlohmann::json body = {{"messages", {{{"role", "user"}, {"content", DrawSum(generator)}}}},
                           {"temperature", kBenchTemperature},
                           {"seed", generator()},
                           {"ignore_eos", random_weights},
                           {"max_tokens", flags.max_tokens},
                           {"stream", true},
                           {"stream_options", {{"include_usage", true}}}};
    if (flags.whole) {
      body.erase("stream");
      body.erase("stream_options");
    }
    bodies.push_back(body.dump());
  }
  return bodies;
}

absl::Status RunCell(const BenchCluster& cluster, const std::vector<std::string>& bodies, int jobs,
                     Cell& cell) {
  LoadOptions options;
  options.address = cluster.http_address();
  options.concurrency = jobs;
  CARAVAN_ASSIGN_OR_RETURN(const LoadResult result, RunLoad(options, bodies));
  int64_t tokens = 0;
  for (const LoadReply& reply : result.replies) {
    if (reply.finish_reason.empty()) {
      return absl::UnavailableError(absl::StrCat("a reply did not come to its end: HTTP status ",
                                                 reply.http_status, ", ", reply.error));
    }
    tokens += reply.completion_tokens;
    cell.first_text_ms.push_back(absl::ToDoubleMilliseconds(reply.first_text));
    for (const absl::Duration gap : reply.gaps) {
      cell.gaps_ms.push_back(absl::ToDoubleMilliseconds(gap));
    }
  }
  cell.tokens_per_s.push_back(static_cast<double>(tokens) / absl::ToDoubleSeconds(result.wall));
  return absl::OkStatus();
}

/// Waits until the cluster serves: the first replies also warm everything up.
absl::Status WarmUp(BenchCluster& cluster, const std::vector<std::string>& bodies) {
  LoadOptions options;
  options.address = cluster.http_address();
  options.concurrency = static_cast<int>(bodies.size());
  const absl::Time deadline = absl::Now() + kBenchLoadTimeout;
  while (absl::Now() < deadline) {
    CARAVAN_ASSIGN_OR_RETURN(const LoadResult result, RunLoad(options, bodies));
    const bool served =
        std::all_of(result.replies.begin(), result.replies.end(),
                    [](const LoadReply& reply) { return reply.http_status == 200; });
    if (served) return absl::OkStatus();
    CARAVAN_RETURN_IF_ERROR(cluster.Check());
    absl::SleepFor(absl::Milliseconds(50));
  }
  return absl::DeadlineExceededError("the workers did not come to serve");
}

void PrintTable(const BenchServeFlags& flags, const std::vector<std::vector<Cell>>& cells) {
  std::printf("| jobs |");
  for (const int workers : flags.workers) {
    std::printf(
        " %d worker%s: tokens/s | times the base | first text p50, ms | gap p50 / p99, ms |",
        workers, workers == 1 ? "" : "s");
  }
  std::printf("\n|---|");
  for (size_t i = 0; i < flags.workers.size(); ++i) std::printf("---|---|---|---|");
  std::printf("\n");
  const double base = Median(cells.front().front().tokens_per_s);
  for (size_t j = 0; j < flags.load.jobs.size(); ++j) {
    std::printf("| %d |", flags.load.jobs[j]);
    for (size_t w = 0; w < flags.workers.size(); ++w) {
      const Cell& cell = cells[w][j];
      const double rate = Median(cell.tokens_per_s);
      std::printf(" %.0f | %.2f | %.1f | %.2f / %.2f |", rate, rate / base,
                  Quantile(cell.first_text_ms, 0.5), Quantile(cell.gaps_ms, 0.5),
                  Quantile(cell.gaps_ms, 0.99));
    }
    std::printf("\n");
  }
}

void PrintPlot(const BenchServeFlags& flags, const std::vector<std::vector<Cell>>& cells) {
  XyChart chart;
  chart.title = absl::StrCat(
      "tokens/s by jobs at once; lines: ", absl::StrJoin(flags.workers, ", "), " workers");
  chart.x_name = "jobs";
  chart.x = flags.load.jobs;
  chart.y_name = "tokens/s";
  for (const std::vector<Cell>& row : cells) {
    std::vector<double>& line = chart.lines.emplace_back();
    for (const Cell& cell : row) line.push_back(Median(cell.tokens_per_s));
  }
  std::fputs(FormatXyChart(chart).c_str(), stdout);
}

absl::Status BenchServe(const BenchServeFlags& flags) {
  std::vector<std::unique_ptr<BenchCluster>> clusters;
  std::mt19937_64 generator(flags.seed);
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> files, OpenStoredModel(flags.model));
  CARAVAN_RETURN_IF_ERROR(CheckBenchWorkers(*files, flags.workers, flags.kv_dtype));
  const bool random_weights = NeedsStandIn(*files);
  for (const int workers : flags.workers) {
    BenchCluster::Options options;
    options.model = flags.model;
    options.workers = workers;
    options.threads = flags.threads;
    options.kv_dtype = flags.kv_dtype;
    options.isa = flags.isa;
    options.pin = flags.pin;
    options.coordinator_arguments = flags.coordinator_arguments;
    CARAVAN_ASSIGN_OR_RETURN(clusters.emplace_back(), BenchCluster::Start(options));
    CARAVAN_RETURN_IF_ERROR(
        WarmUp(*clusters.back(), MakeBodies(8, flags, random_weights, generator)));
  }
  std::vector<std::vector<Cell>> cells(clusters.size(), std::vector<Cell>(flags.load.jobs.size()));
  // In turns, so that the machine's moods meet all.
  for (int round = 0; round < flags.load.rounds; ++round) {
    for (size_t j = 0; j < flags.load.jobs.size(); ++j) {
      const std::vector<std::string> bodies =
          MakeBodies(int64_t{flags.load.jobs[j]} * flags.load.requests_per_job, flags,
                     random_weights, generator);
      for (size_t w = 0; w < clusters.size(); ++w) {
        CARAVAN_RETURN_IF_ERROR(RunCell(*clusters[w], bodies, flags.load.jobs[j], cells[w][j]));
      }
    }
  }
  std::printf(
      "model %s, %d thread%s a worker%s; %s replies to sums, %d a job one after the other, over "
      "HTTP; medians of %d rounds\n\n",
      flags.model.c_str(), flags.threads, flags.threads == 1 ? "" : "s",
      flags.pin ? ", each worker pinned to a core" : "", flags.whole ? "whole" : "streamed",
      flags.load.requests_per_job, flags.load.rounds);
  PrintTable(flags, cells);
  std::printf("\nthe base: %d worker%s, %d job%s\n", flags.workers[0],
              flags.workers[0] == 1 ? "" : "s", flags.load.jobs[0],
              flags.load.jobs[0] == 1 ? "" : "s");
  PrintPlot(flags, cells);
  return absl::OkStatus();
}

}  // namespace

void AddBenchServeCommand(CLI::App& bench, CommandBody& body) {
  CLI::App* const command = bench.add_subcommand(
      "serve", "Measure many clients of the HTTP API at once, with pipelines of several lengths");
  const auto flags = std::make_shared<BenchServeFlags>();
  AddConfigOption(*command);
  command->add_option("--model", flags->model, kModelHelp)->required();
  command->add_option("--workers", flags->workers, "Compare pipelines of so many workers")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "CPU threads of each worker")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  AddIsaOption(*command, flags->isa);
  AddKvOption(*command, flags->kv_dtype);
  flags->load.AddTo(*command, 4096);
  command
      ->add_option("--max-tokens", flags->max_tokens,
                   "Longest reply; a synthetic model's ends nowhere else")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the questions")->capture_default_str();
  command->add_flag("--pin", flags->pin, "Worker i runs on core i alone (modulo the cores)");
  command->add_flag("--whole", flags->whole,
                    "Ask for whole replies instead of streams, as batch clients do");
  command
      ->add_option("--coordinator-options", flags->coordinator_arguments,
                   "Further options of the coordinators, separated by spaces")
      ->delimiter(' ');
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(BenchServe(*flags)); }; });
}

}  // namespace caravan
