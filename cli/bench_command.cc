// caravan bench: how fast one stream runs through real processes on this machine, and what a hop
// costs.

#include <grpcpp/grpcpp.h>

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
#include "absl/time/clock.h"
#include "base/buffer.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/bench_cluster.h"
#include "cli/bench_load.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/stand_in_tokenizer.h"
#include "cli/validators.h"
#include "cluster/grpc_status.h"
#include "kernels/cpu/memory_read.h"
#include "model/layer_cost.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

// Tokens for which there is room at least, and those of a chat's form.
constexpr int64_t kLeastContext = 4096;
constexpr int64_t kChatTokens = 16;

struct BenchFlags {
  std::string model;
  std::string prompt = "Sort these numbers: 53 9 72 80 25";
  int64_t prompt_bytes = 0;
  int workers = 2;
  int threads = 1;
  DType kv_dtype = DType::kF32;
  CpuIsa isa = CpuIsa::kAuto;
  int rounds = 30;
  uint32_t max_tokens = 256;
};

absl::StatusOr<std::unique_ptr<v1::Jobs::Stub>> ConnectTo(const BenchCluster& cluster) {
  ClientFlags client;
  client.coordinator = cluster.address();
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(client));
  return v1::Jobs::NewStub(channel);
}

/// What one cluster did, a value a round.
struct Series {
  std::vector<double> steps_us;
  std::vector<double> first_ms;
  std::vector<double> prefill_tokens_per_s;
};

/// Runs the prompt once. A short reply may be read all at once, which gives no rate.
absl::StatusOr<v1::JobFinished> RunPromptOnce(v1::Jobs::Stub& jobs, const std::string& prompt,
                                              const v1::SamplingParams& sampling,
                                              uint32_t max_tokens) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kBenchLoadTimeout));
  v1::SubmitRequest request;
  v1::ChatMessage& message = *request.add_messages();
  message.set_role("user");
  message.set_content(prompt);
  request.set_max_tokens(max_tokens);
  *request.mutable_sampling() = sampling;
  const auto events = jobs.Submit(&context, request);
  v1::JobEvent event;
  v1::JobFinished finished;
  while (events->Read(&event)) {
    if (event.has_finished()) finished = event.finished();
  }
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(events->Finish()));
  return finished;
}

/// Runs the prompt until there is a rate.
absl::StatusOr<v1::JobFinished> RunPrompt(v1::Jobs::Stub& jobs, const std::string& prompt,
                                          const v1::SamplingParams& sampling, uint32_t max_tokens) {
  constexpr int kMaxTries = 20;
  for (int tries = 0; tries < kMaxTries; ++tries) {
    CARAVAN_ASSIGN_OR_RETURN(v1::JobFinished finished,
                             RunPromptOnce(jobs, prompt, sampling, max_tokens));
    if (finished.decode_tokens_per_s() > 0) return finished;
    if (finished.completion_tokens() < 2) break;
  }
  return absl::InvalidArgumentError("--prompt: the reply is too short to measure");
}

/// The same, as soon as the cluster serves.
absl::StatusOr<v1::JobFinished> RunFirstPrompt(BenchCluster& cluster, v1::Jobs::Stub& jobs,
                                               const std::string& prompt,
                                               const v1::SamplingParams& sampling,
                                               uint32_t max_tokens) {
  const absl::Time deadline = absl::Now() + kBenchLoadTimeout;
  while (true) {
    absl::StatusOr<v1::JobFinished> finished = RunPrompt(jobs, prompt, sampling, max_tokens);
    if (!absl::IsUnavailable(finished.status()) || absl::Now() > deadline) return finished;
    CARAVAN_RETURN_IF_ERROR(cluster.Check());
    absl::SleepFor(absl::Milliseconds(50));
  }
}

/// Bytes a second that so many threads read from memory, the best of several passes.
absl::StatusOr<double> MeasureReadRate(int num_threads) {
  constexpr int64_t kBytes = int64_t{256} << 20;  // past any cache of a cheap box
  CARAVAN_ASSIGN_OR_RETURN(const Buffer buffer, Buffer::Allocate(kBytes));
  std::fill_n(buffer.data(), kBytes, std::byte{1});
  uint64_t sum = 0;
  ThreadPool pool(num_threads);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const absl::Duration start = SteadyClock().Now();
    sum += ReadMemory(pool, buffer.data(), kBytes);
    best = std::max(
        best, static_cast<double>(kBytes) / absl::ToDoubleSeconds(SteadyClock().Now() - start));
  }
  CARAVAN_CHECK(sum != 0);  // so that it was read
  return best;
}

absl::Status Bench(const BenchFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model_files,
                           OpenStoredModel(flags.model));
  // One worker beside so many, in turns, so that the machine's moods meet both.
  std::vector<int> sizes = {1};
  if (flags.workers > 1) sizes.push_back(flags.workers);
  CARAVAN_RETURN_IF_ERROR(CheckBenchWorkers(*model_files, sizes, flags.kv_dtype));
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model_files));
  CARAVAN_ASSIGN_OR_RETURN(const double read_rate, MeasureReadRate(flags.threads));
  const int64_t context =
      std::max(kLeastContext, flags.prompt_bytes + flags.max_tokens + kChatTokens);
  std::vector<std::unique_ptr<BenchCluster>> clusters;
  std::vector<std::unique_ptr<v1::Jobs::Stub>> jobs;
  for (const int size : sizes) {
    BenchCluster::Options options;
    options.model = flags.model;
    options.workers = size;
    options.threads = flags.threads;
    options.kv_dtype = flags.kv_dtype;
    options.isa = flags.isa;
    // No memory for caches that one stream never fills.
    options.coordinator_arguments = {
        "--context",
        absl::StrCat(std::min(context, model_files->config().max_position_embeddings))};
    CARAVAN_ASSIGN_OR_RETURN(clusters.emplace_back(), BenchCluster::Start(options));
    CARAVAN_ASSIGN_OR_RETURN(jobs.emplace_back(), ConnectTo(*clusters.back()));
  }
  std::vector<Series> series(sizes.size());
  uint32_t prompt_tokens = 0;
  v1::SamplingParams sampling = BenchSampling(*model_files);
  std::mt19937_64 generator(1);
  constexpr int kWarmUpRounds = 3;
  for (int round = -kWarmUpRounds; round < flags.rounds; ++round) {
    const std::string prompt =
        flags.prompt_bytes > 0 ? DrawText(flags.prompt_bytes, generator) : flags.prompt;
    sampling.set_seed(generator());
    for (size_t i = 0; i < clusters.size(); ++i) {
      CARAVAN_ASSIGN_OR_RETURN(
          const v1::JobFinished finished,
          round == -kWarmUpRounds
              ? RunFirstPrompt(*clusters[i], *jobs[i], prompt, sampling, flags.max_tokens)
              : RunPrompt(*jobs[i], prompt, sampling, flags.max_tokens));
      if (round < 0) continue;
      prompt_tokens = finished.prompt_tokens();
      series[i].steps_us.push_back(1e6 / finished.decode_tokens_per_s());
      series[i].first_ms.push_back(1e3 * finished.time_to_first_token_s());
      series[i].prefill_tokens_per_s.push_back(prompt_tokens / finished.time_to_first_token_s());
    }
  }

  const LayerCost whole = cost.Of({0, model_files->config().num_hidden_layers, true, true});
  const double bound_us = 1e6 * static_cast<double>(whole.active_bytes_per_token) / read_rate;
  std::printf(
      "model %s, %s read a token; %d thread%s %.1f GB/s, so at most %.0f tokens/s from "
      "memory (a model that fits the caches may pass that)\n",
      flags.model.c_str(), FormatByteSize(whole.active_bytes_per_token).c_str(), flags.threads,
      flags.threads == 1 ? " reads" : "s read", read_rate / 1e9, 1e6 / bound_us);
  std::printf(
      "one stream, a prompt of %u tokens%s, %d thread%s a worker, processes on loopback, medians "
      "of %d runs\n\n",
      prompt_tokens, flags.prompt_bytes > 0 ? ", each another one" : " that the KV cache knows",
      flags.threads, flags.threads == 1 ? "" : "s", flags.rounds);
  const char* const prefill_head = flags.prompt_bytes > 0 ? " prefill, tokens/s |" : "";
  std::printf(
      "| workers | tokens/s | step, us | share of the memory bound | first token, ms |%s\n"
      "|---|---|---|---|---|%s\n",
      prefill_head, flags.prompt_bytes > 0 ? "---|" : "");
  for (size_t i = 0; i < sizes.size(); ++i) {
    const double step_us = Median(series[i].steps_us);
    std::printf("| %d | %.1f | %.0f | %.0f%% | %.1f |", sizes[i], 1e6 / step_us, step_us,
                100 * bound_us / step_us, Median(series[i].first_ms));
    if (flags.prompt_bytes > 0) std::printf(" %.0f |", Median(series[i].prefill_tokens_per_s));
    std::printf("\n");
  }
  if (sizes.size() > 1) {
    std::printf("\na hop costs %.0f us a token (%d workers minus 1, over %d hop%s)\n",
                (Median(series[1].steps_us) - Median(series[0].steps_us)) / (flags.workers - 1),
                flags.workers, flags.workers - 1, flags.workers == 2 ? "" : "s");
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "bench", "Measure one stream through real processes on this machine, and the cost of a hop");
  const auto flags = std::make_shared<BenchFlags>();
  AddConfigOption(*command);
  // Not required by the parser, which would ask `bench serve` for it too.
  command->add_option("--model", flags->model, absl::StrCat(kModelHelp, "; required"));
  CLI::Option* const prompt = command->add_option("--prompt", flags->prompt, "What each run asks")
                                  ->check(NotEmpty())
                                  ->capture_default_str();
  command
      ->add_option("--prompt-bytes", flags->prompt_bytes,
                   "Instead of --prompt, made-up words of so many bytes, others in each run; adds "
                   "the rate of prefill")
      ->check(CLI::Range(1, 2048))
      ->excludes(prompt);
  command->add_option("--workers", flags->workers, "Compare so many workers with one")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "CPU threads of each worker")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option("--max-tokens", flags->max_tokens,
                   "Longest reply; a synthetic model's ends nowhere else")
      ->check(CLI::Range(2, 2048))
      ->capture_default_str();
  AddIsaOption(*command, flags->isa);
  AddKvOption(*command, flags->kv_dtype);
  command->add_option("--rounds", flags->rounds, "Runs of each, after three to warm up")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  AddBenchCacheCommand(*command, body);
  AddBenchOffloadCommand(*command, body);
  AddBenchPlanCommand(*command, body);
  AddBenchServeCommand(*command, body);
  AddBenchSpeculateCommand(*command, body);
  command->callback([command, flags, &body] {
    if (!command->get_subcommands().empty()) return;
    if (flags->model.empty()) throw CLI::RequiredError("--model");
    body = [flags] { return ReportStatus(Bench(*flags)); };
  });
}

}  // namespace caravan
