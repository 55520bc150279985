// caravan bench offload: a model larger than memory, beside what its disk and its cores allow.

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"
#include "base/int_math.h"
#include "base/median.h"
#include "base/peak_memory.h"
#include "base/status_macros.h"
#include "cli/bench_load.h"
#include "cli/bench_offload.h"
#include "cli/commands.h"
#include "cli/named_numbers.h"
#include "cli/validators.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

/// Rows that one step may carry, as in a worker.
constexpr int kMaxJobs = 512;
/// So that a round is more than its first step.
constexpr int64_t kLeastTokensPerJob = 4;

struct BenchOffloadFlags {
  LocalPipelineFlags pipeline;
  std::vector<int> jobs = {1, 8, 32, 128};
  int64_t prompt = 1;
  int64_t tokens = 256;
  int rounds = 3;
  std::string routing = "zipf=0.8,sticky=0.3";
  uint64_t seed = 1;
  bool fio = false;

  int64_t TokensPerJob(int at_once) const {
    return std::max(kLeastTokensPerJob, CeilDiv(tokens, int64_t{at_once}));
  }
};

/// nullopt: the model's own routers.
absl::StatusOr<std::optional<SyntheticRouting::Options>> RoutingOf(const BenchOffloadFlags& flags) {
  if (flags.routing == "model") return std::nullopt;
  SyntheticRouting::Options routing;
  routing.seed = flags.seed;
  absl::Status valid = ParseNamedNumbers(
      flags.routing,
      {{"zipf", &routing.zipf}, {"sticky", &routing.sticky}, {"seed", &routing.seed}});
  if (valid.ok()) valid = SyntheticRouting::Check(routing);
  CARAVAN_RETURN_IF_ERROR(Annotate(valid, "--routing"));
  return routing;
}

/// The options that all loads share. `aside`: memory that the pipeline must leave; max_context: of
/// the model.
absl::StatusOr<LocalPipeline::Options> PipelineOf(const BenchOffloadFlags& flags, int64_t aside,
                                                  int64_t max_context) {
  LocalPipeline::Options options = flags.pipeline.Options();
  options.prefill_chunk = kMaxJobs;
  int64_t context = 0;
  for (const int at_once : flags.jobs) {
    context = std::max(context, flags.prompt + flags.TokensPerJob(at_once));
  }
  if (context > max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt ", flags.prompt, " with --tokens ", flags.tokens, ": replies of ",
                     context - flags.prompt, " tokens need a context of ", context,
                     ", and the model allows ", max_context));
  }
  if (options.context_tokens == 0) options.context_tokens = context;
  if (options.context_tokens < context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context: prompts of ", flags.prompt, " tokens with replies of ",
                     context - flags.prompt, " need ", context, ", not ", options.context_tokens));
  }
  if (options.memory_budget_bytes <= aside) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ram: measuring the disk alone takes ", FormatByteSize(aside)));
  }
  options.memory_aside_bytes = aside;
  options.memory_aside_use = "measuring the disk";
  if (flags.routing != "model") {
    if (options.experts.guesses == ExpertStore::Guesses::kAlways) {
      return absl::InvalidArgumentError(
          "--guess-experts on: no router foretells made-up choices; with --routing model they may "
          "be guessed");
    }
    if (!options.record_routing.empty()) {
      return absl::InvalidArgumentError(
          "--record-routing: made-up choices are not the model's; with --routing model its own may "
          "be recorded");
    }
    options.experts.guesses = ExpertStore::Guesses::kNever;
  }
  return options;
}

using Figure = std::function<double(const OffloadRound&)>;

double MedianOf(const OffloadResult& result, const Figure& figure) {
  std::vector<double> values;
  for (const OffloadRound& round : result.rounds) values.push_back(figure(round));
  return Median(values);
}

double TokensPerSecond(const OffloadRound& round) {
  return static_cast<double>(round.tokens) / round.seconds;
}
double PerToken(const OffloadRound& round, double amount) {
  return amount / static_cast<double>(round.tokens);
}
double RateWhileReading(const OffloadRound& round) {
  if (round.read_seconds == 0) return 0;
  return 1e-9 * static_cast<double>(round.read_bytes) / round.read_seconds;
}
/// Tokens a second, had the round taken so long.
double AtBest(const OffloadRound& round, absl::Duration bound) {
  return static_cast<double>(round.tokens) / absl::ToDoubleSeconds(bound);
}
/// Of a bound that the round reached.
double Share(const OffloadRound& round, absl::Duration bound) {
  return absl::ToDoubleSeconds(bound) / round.seconds;
}

std::string RateCell(double tokens_per_s) {
  return tokens_per_s == std::numeric_limits<double>::infinity()
             ? "-"
             : absl::StrFormat("%.2f", tokens_per_s);
}

void PrintHead(const BenchOffloadFlags& flags, const StoredModel& model, const LayerCost& whole,
               const std::optional<SyntheticRouting::Options>& routing, const DiskGauge& gauge) {
  std::printf(
      "model %s, %s of weights, among them %lld experts of %s on disk; --ram %s, of which %s to "
      "measure the disk\n",
      flags.pipeline.model.c_str(), FormatByteSize(whole.weight_bytes).c_str(),
      static_cast<long long>(whole.num_experts), FormatByteSize(gauge.expert_bytes()).c_str(),
      FormatByteSize(flags.pipeline.ram).c_str(), FormatByteSize(gauge.memory_bytes()).c_str());
  const std::string chosen = routing.has_value()
                                 ? absl::StrFormat("made-up routing: zipf=%g,sticky=%g,seed=%d",
                                                   routing->zipf, routing->sticky, routing->seed)
                                 : "the model's own routing";
  const int64_t chosen_experts = model.config().router.num_experts_per_tok;
  std::printf(
      "%s, %lld of %lld experts a token and layer; random prompts of %lld, replies sampled at "
      "temperature %g; medians of %d rounds of %lld tokens or more\n\n",
      chosen.c_str(), static_cast<long long>(chosen_experts),
      static_cast<long long>(model.config().n_routed_experts), static_cast<long long>(flags.prompt),
      kBenchTemperature, flags.rounds, static_cast<long long>(flags.tokens));
  std::printf(
      "| workers | jobs | slots | tokens/s | touched a step | hits | read a token | MiB | GB/s "
      "while reading | disk alone | share |%s layers in turn, tokens/s | share | bulk: disk, "
      "tokens/s | compute, tokens/s | share of the lower |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|%s---|---|---|---|---|\n",
      flags.fio ? " fio | share |" : "", flags.fio ? "---|---|" : "");
}

void PrintRow(const BenchOffloadFlags& flags, const OffloadLoad& load, const OffloadResult& result,
              int64_t expert_bytes) {
  const auto median = [&result](const Figure& figure) { return MedianOf(result, figure); };
  std::printf("| %d | %d | %lld | %.2f | %.2f | %.1f%% | %.3f | %.2f | %.2f | %.2f | %.0f%% |",
              load.num_workers, load.jobs, static_cast<long long>(result.slots),
              median(TokensPerSecond), median([](const OffloadRound& round) {
                return static_cast<double>(round.touched) / static_cast<double>(round.steps);
              }),
              100 * median([](const OffloadRound& round) {
                return static_cast<double>(round.hits) / static_cast<double>(round.touched);
              }),
              median([&](const OffloadRound& round) {
                return PerToken(round, static_cast<double>(round.read_bytes) /
                                           static_cast<double>(expert_bytes));
              }),
              median([](const OffloadRound& round) {
                return PerToken(round, static_cast<double>(round.read_bytes) / (1 << 20));
              }),
              median(RateWhileReading),
              median([](const OffloadRound& round) { return round.disk.gb_per_s; }),
              100 * median([](const OffloadRound& round) {
                return RateWhileReading(round) / round.disk.gb_per_s;
              }));
  if (flags.fio) {
    std::printf(" %.2f | %.0f%% |",
                median([](const OffloadRound& round) { return round.disk.fio_gb_per_s; }),
                100 * median([](const OffloadRound& round) {
                  return RateWhileReading(round) / round.disk.fio_gb_per_s;
                }));
  }
  const auto at_best = [&](absl::Duration OffloadBounds::*bound) {
    return RateCell(
        median([bound](const OffloadRound& round) { return AtBest(round, round.bounds.*bound); }));
  };
  std::printf(
      " %s | %.0f%% | %s | %s | %.0f%% |\n", at_best(&OffloadBounds::in_turn).c_str(),
      100 * median([](const OffloadRound& round) { return Share(round, round.bounds.in_turn); }),
      at_best(&OffloadBounds::disk).c_str(), at_best(&OffloadBounds::compute).c_str(),
      100 * median([](const OffloadRound& round) { return Share(round, round.bounds.bulk()); }));
  std::fflush(stdout);
}

absl::Status BenchOffload(const BenchOffloadFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::optional<SyntheticRouting::Options> routing,
                           RoutingOf(flags));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model,
                           OpenStoredModel(flags.pipeline.model));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<DiskGauge> gauge,
                           DiskGauge::Create(*model, {.fio = flags.fio}));
  CARAVAN_ASSIGN_OR_RETURN(
      const LocalPipeline::Options options,
      PipelineOf(flags, gauge->memory_bytes(), model->config().max_position_embeddings));
  LocalPipeline::Options checked = options;
  checked.num_workers = flags.pipeline.workers;
  CARAVAN_RETURN_IF_ERROR(LocalPipeline::CheckOptions(*model, checked));
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model));
  const LayerCost whole = cost.Of({0, model->config().num_hidden_layers, true, true});

  std::vector<int> sizes = {1};
  if (flags.pipeline.workers > 1) sizes.push_back(flags.pipeline.workers);
  bool described = false;
  for (const int at_once : flags.jobs) {
    for (const int size : sizes) {
      OffloadLoad load;
      load.num_workers = size;
      load.jobs = at_once;
      load.prompt_tokens = flags.prompt;
      load.tokens_per_job = flags.TokensPerJob(at_once);
      load.rounds = flags.rounds;
      load.seed = flags.seed;
      load.routing = routing;
      CARAVAN_ASSIGN_OR_RETURN(const OffloadResult result,
                               MeasureOffload(*model, options, load, *gauge));
      if (!std::exchange(described, true)) PrintHead(flags, *model, whole, routing, *gauge);
      PrintRow(flags, load, result, gauge->expert_bytes());
    }
  }
  std::printf("\nat most %s of memory were resident, %.1f%% of --ram\n",
              FormatByteSize(PeakMemory(::getpid())).c_str(),
              100.0 * static_cast<double>(PeakMemory(::getpid())) /
                  static_cast<double>(flags.pipeline.ram));
  return absl::OkStatus();
}

}  // namespace

void AddBenchOffloadCommand(CLI::App& bench, CommandBody& body) {
  CLI::App* const command = bench.add_subcommand(
      "offload",
      "Measure a packed model larger than memory, beside what its disk and its cores allow");
  const auto flags = std::make_shared<BenchOffloadFlags>();
  AddConfigOption(*command);
  flags->pipeline.AddTo(*command);
  command->get_option("--ram")->required();
  command->get_option("--workers")
      ->description("Beside one stage, split the layers over so many, which share --ram and cores");
  command->add_option("--jobs", flags->jobs, "Jobs at once, one row of the table each")
      ->delimiter(',')
      ->check(CLI::Range(1, kMaxJobs))
      ->capture_default_str();
  command
      ->add_option("--prompt", flags->prompt,
                   "Tokens of each job's prompt, which is in the KV cache after the first round")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command
      ->add_option("--tokens", flags->tokens,
                   "Tokens of a round, of all jobs together; each job has 4 at least")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "Runs of each; their median counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      ->add_option("--routing", flags->routing,
                   "How experts are chosen: made up, as bench cache does it, or \"model\", by the "
                   "model's own routers")
      ->check(NotEmpty())
      ->type_name("NAME=NUMBER,...|model")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the prompts, the sampling and made-up routing")
      ->capture_default_str();
  command->add_flag("--fio", flags->fio, "Let fio read the same files too, in turns with us");
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(BenchOffload(*flags)); }; });
}

}  // namespace caravan
