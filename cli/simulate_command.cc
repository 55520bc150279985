// caravan simulate: what a day of jobs meets on boxes that need not be there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "cli/aim_option.h"
#include "cli/commands.h"
#include "cli/shape_flags.h"
#include "cluster/box_json.h"
#include "cluster/box_planner.h"
#include "coordinator/box_simulation.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

constexpr double kMostJobs = 1e6;

struct SimulateFlags {
  ShapeFlags shape;
  std::string boxes;
  int64_t jobs = 32;
  int64_t context = 4096;
  double rate = 60;  // jobs an hour
  double hours = 24;
  double prompt = 512;  // tokens, in the mean
  double reply = 512;   // the same
  int64_t chunk = 512;
  uint64_t seed = 1;
  PlanAim aim = PlanAim::kBulk;
  DType kv_dtype = DType::kF16;
};

/// Jobs that come at random, of random lengths: gaps and lengths are exponential. Prompt and reply
/// together fit the context.
std::vector<SimulatedJob> DrawJobs(const SimulateFlags& flags) {
  std::mt19937_64 random(flags.seed);
  std::exponential_distribution<double> unit(1);
  const auto length = [&](double mean, int64_t most) {
    return std::clamp<int64_t>(std::llround(mean * unit(random)), 1, most);
  };
  std::vector<SimulatedJob> jobs;
  const double end = flags.hours * 3600;
  for (double time = unit(random) * 3600 / flags.rate; time < end;
       time += unit(random) * 3600 / flags.rate) {
    SimulatedJob& job = jobs.emplace_back();
    job.arrival_seconds = time;
    job.prompt_tokens = length(flags.prompt, flags.context - 1);
    job.reply_tokens = length(flags.reply, flags.context - job.prompt_tokens);
  }
  return jobs;
}

/// "1.2, 3.4, 5.6": median, 90th and 99th of a hundred.
std::string Quantiles(std::vector<double> values) {
  if (values.empty()) return "-";
  std::sort(values.begin(), values.end());
  const auto at = [&values](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
  };
  return absl::StrFormat("%.1f, %.1f, %.1f", at(0.5), at(0.9), at(0.99));
}

void Print(const SimulateFlags& flags, const std::vector<BoxStage>& stages,
           const Simulation& result) {
  std::vector<double> first_token;
  std::vector<double> whole;
  for (const SimulatedOutcome& job : result.jobs) {
    if (job.end_seconds < 0) continue;
    first_token.push_back(job.first_token_seconds - job.arrival_seconds);
    whole.push_back(job.end_seconds - job.arrival_seconds);
  }
  const double end = flags.hours * 3600;
  std::printf(
      "a simulation of predicted times, not a measurement: %g jobs an hour for %g h, prompts of %g "
      "and replies of %g tokens in the mean, chunks of %lld, room for the KV of %lld jobs of %lld "
      "tokens\n\n"
      "| jobs that came | that ended in that time | waited at once, at most | tokens/s | seconds "
      "to "
      "the first token: median, 90%%, 99%% | to the last |\n|---|---|---|---|---|---|\n"
      "| %lld | %lld | %lld | %.2f | %s | %s |\n\n"
      "| stage | box | layers | at work |\n|---|---|---|---|\n",
      flags.rate, flags.hours, flags.prompt, flags.reply, static_cast<long long>(flags.chunk),
      static_cast<long long>(flags.jobs), static_cast<long long>(flags.context),
      static_cast<long long>(result.jobs.size()), static_cast<long long>(whole.size()),
      static_cast<long long>(result.most_waiting),
      static_cast<double>(result.generated_tokens) / end, Quantiles(first_token).c_str(),
      Quantiles(whole).c_str());
  for (size_t i = 0; i < stages.size(); ++i) {
    std::printf("| %zu | %s | %s | %.0f%% |\n", i + 1, stages[i].box->name.c_str(),
                DescribeStage(stages[i].stage).c_str(),
                100 * std::min(1.0, result.busy_seconds[i] / end));
  }
}

absl::Status RunSimulation(const SimulateFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, flags.shape.Open());
  const ModelConfig& config = model->config();
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model));
  CARAVAN_RETURN_IF_ERROR(CheckContext(config, flags.context, flags.kv_dtype));
  if (flags.rate * flags.hours > kMostJobs) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rate, --hours: ", flags.rate * flags.hours, " jobs; at most ", kMostJobs));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<BoxCount> boxes, ReadBoxes(flags.boxes));
  const DecodeLoad load = {
      .jobs = flags.jobs, .context_tokens = flags.context, .kv_dtype = flags.kv_dtype};
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<BoxStage> stages,
                           PlanBoxes(config, cost, boxes, load, flags.aim));
  CARAVAN_ASSIGN_OR_RETURN(const SimulatedPipeline pipeline,
                           SimulateBoxes(config, cost, stages, load, flags.chunk));
  Print(flags, stages, Simulate(pipeline, DrawJobs(flags), flags.hours * 3600));
  return absl::OkStatus();
}

}  // namespace

void AddSimulateCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "simulate",
      "Simulate hours of jobs on boxes: how long they wait, and how busy each box is. The plan is "
      "that of caravan plan, the scheduler the coordinator's");
  const auto flags = std::make_shared<SimulateFlags>();
  AddConfigOption(*command);
  flags->shape.AddTo(*command);
  command->add_option("--boxes", flags->boxes, "The boxes, as caravan plan takes them")
      ->type_name("FILE")
      ->required();
  command->add_option("--jobs", flags->jobs, "For how many jobs' KV caches there is room")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--context", flags->context, "Tokens of each of these, and of the longest job")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30))
      ->capture_default_str();
  command->add_option("--rate", flags->rate, "Jobs an hour; they come at random")
      ->check(CLI::Range(1e-3, 1e6))
      ->capture_default_str();
  command->add_option("--hours", flags->hours, "How long they come, and are looked at")
      ->check(CLI::Range(1e-3, 1e4))
      ->capture_default_str();
  command->add_option("--prompt", flags->prompt, "Tokens of prompts, in the mean")
      ->check(CLI::Range(1.0, 1e9))
      ->capture_default_str();
  command->add_option("--reply", flags->reply, "Tokens of replies, in the mean")
      ->check(CLI::Range(1.0, 1e9))
      ->capture_default_str();
  command->add_option("--prefill-chunk", flags->chunk, "As the coordinator's")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of when jobs come and how long they are")
      ->capture_default_str();
  AddAimOption(*command, flags->aim, "What the plan is for, as caravan plan takes it");
  AddKvOption(*command, flags->kv_dtype);
  command->callback(
      [flags, &body] { body = [flags] { return ReportStatus(RunSimulation(*flags)); }; });
}

}  // namespace caravan
