#include "cli/pipeline_bench.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/bench_load.h"
#include "cli/client.h"
#include "cli/link_probe.h"
#include "cluster/box_json.h"
#include "cluster/grpc_status.h"
#include "cluster/pipeline_plan.h"
#include "cluster/step_time.h"

namespace caravan {
namespace {

// The chat's form around what a user says.
constexpr int kFormTokens = 3;
// Rows of a step, as a coordinator has them if not told.
constexpr int64_t kPrefillChunk = 512;
// Twice that is what a worker's report of its load may be late by.
constexpr char kHeartbeatTimeout[] = "1";
constexpr absl::Duration kLoadIsTold = absl::Seconds(1);
// So that it does not depend on threads' moods which jobs a step finds there.
constexpr absl::Duration kArrivalGap = absl::Milliseconds(50);
// A scratch file is read at the box's rate, past all caches.
constexpr char kScratchBytes[] = "256MiB";
constexpr absl::Duration kProbeTimeout = absl::Minutes(5);

/// One job, timed by the coordinator.
struct Reply {
  absl::Status status;
  v1::JobFinished finished;
};

Reply RunJob(v1::Jobs::Stub& stub, const v1::SubmitRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kBenchLoadTimeout));
  Reply reply;
  const auto events = stub.Submit(&context, request);
  v1::JobEvent event;
  while (events->Read(&event)) {
    if (event.has_finished()) reply.finished = event.finished();
  }
  reply.status = FromGrpcStatus(events->Finish());
  if (reply.status.ok() && reply.finished.decode_tokens_per_s() == 0) {
    reply.status = absl::UnavailableError("a reply was too short to be timed");
  }
  return reply;
}

struct Wave {
  std::vector<Reply> replies;
  double seconds = 0;
};

/// One after the other comes, kArrivalGap apart.
absl::StatusOr<Wave> RunJobs(const BenchCluster& cluster,
                             const std::vector<v1::SubmitRequest>& requests) {
  ClientFlags client;
  client.coordinator = cluster.address();
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(client));
  const std::unique_ptr<v1::Jobs::Stub> stub = v1::Jobs::NewStub(channel);
  Wave wave;
  wave.replies.resize(requests.size());
  std::vector<std::thread> threads;
  const absl::Duration begin = SteadyClock().Now();
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      absl::SleepFor(begin + static_cast<double>(i) * kArrivalGap - SteadyClock().Now());
      wave.replies[i] = RunJob(*stub, requests[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  wave.seconds = absl::ToDoubleSeconds(SteadyClock().Now() - begin);
  for (const Reply& reply : wave.replies) CARAVAN_RETURN_IF_ERROR(reply.status);
  return wave;
}

/// Valid UTF-8 of so many bytes, each of which is a token: as many tokens as there are, since rows
/// of the same token choose much the same experts.
std::string DrawCharacters(int64_t bytes, std::mt19937_64& generator) {
  std::uniform_int_distribution<int> ascii(0x21, 0x7e);
  std::uniform_int_distribution<int> wide(0x80, 0x7ff);
  std::uniform_int_distribution<int> is_wide(0, 1);
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes) {
    if (is_wide(generator) == 0 || static_cast<int64_t>(text.size()) + 1 == bytes) {
      text += static_cast<char>(ascii(generator));
    } else {
      const int point = wide(generator);
      text += static_cast<char>(0xc0 | point >> 6);
      text += static_cast<char>(0x80 | (point & 0x3f));
    }
  }
  return text;
}

/// Jobs of lengths about the load's, others in text each time.
std::vector<v1::SubmitRequest> MakeRequests(const StoredModel& model, const PipelineLoad& load,
                                            std::mt19937_64& lengths, std::mt19937_64& texts) {
  std::uniform_int_distribution<int> prompt(std::max(1, load.prompt_tokens / 2 - kFormTokens),
                                            load.prompt_tokens * 3 / 2 - kFormTokens);
  std::uniform_int_distribution<int> reply(std::max(2, load.reply_tokens * 3 / 4),
                                           load.reply_tokens * 5 / 4);
  std::vector<v1::SubmitRequest> requests(static_cast<size_t>(load.jobs));
  for (v1::SubmitRequest& request : requests) {
    v1::ChatMessage& message = *request.add_messages();
    message.set_role("user");
    // A job alone has the lengths themselves.
    message.set_content(
        DrawCharacters(load.jobs == 1 ? load.prompt_tokens - kFormTokens : prompt(lengths), texts));
    request.set_max_tokens(
        static_cast<uint32_t>(load.jobs == 1 ? load.reply_tokens : reply(lengths)));
    *request.mutable_sampling() = BenchSampling(model);
    request.mutable_sampling()->set_seed(texts());
  }
  return requests;
}

PipelineFigures FiguresOf(const Wave& wave) {
  std::vector<double> first;
  std::vector<double> pace;
  int64_t tokens = 0;
  for (const Reply& reply : wave.replies) {
    tokens += reply.finished.completion_tokens();
    first.push_back(reply.finished.time_to_first_token_s());
    pace.push_back(1 / reply.finished.decode_tokens_per_s());
  }
  return {static_cast<double>(tokens) / wave.seconds, Median(std::move(first)),
          Median(std::move(pace))};
}

/// Of what `of` says of each.
template <typename T, typename Of>
double MedianOf(const std::vector<T>& all, Of of) {
  std::vector<double> values;
  for (const T& each : all) values.push_back(of(each));
  return Median(std::move(values));
}

PipelineFigures MedianOf(const std::vector<PipelineFigures>& rounds) {
  const auto of = [&](double PipelineFigures::*figure) {
    return MedianOf(rounds, [figure](const PipelineFigures& round) { return round.*figure; });
  };
  return {of(&PipelineFigures::tokens_per_second), of(&PipelineFigures::first_token_seconds),
          of(&PipelineFigures::seconds_per_token)};
}

/// Boxes that a load keeps at work while it decodes: as many as it has micro-batches.
int AtWork(int workers, const PipelineLoad& load) {
  DecodeLoad decode;
  decode.jobs = load.jobs;
  return static_cast<int>(MicroBatches(workers, decode));
}

/// Stages that leave experts on their disks.
int Reading(const std::vector<int64_t>& expert_slots) {
  return static_cast<int>(std::count_if(expert_slots.begin(), expert_slots.end(),
                                        [](int64_t slots) { return slots > 0; }));
}

double DiskRate(const Box& box) { return box.disk.read_bytes; }

/// Of what moves with the machine's moods, the median.
Box MedianOf(const std::vector<Box>& boxes) {
  Box median = boxes.front();
  median.cpu.multiply_adds = MedianOf(boxes, [](const Box& box) { return box.cpu.multiply_adds; });
  median.cpu.attention_multiply_adds =
      MedianOf(boxes, [](const Box& box) { return box.cpu.attention_multiply_adds; });
  median.memory.read_bytes = MedianOf(boxes, [](const Box& box) { return box.memory.read_bytes; });
  median.disk.read_bytes = MedianOf(boxes, DiskRate);
  return median;
}

/// What each stage has done since it was ready.
struct StageLoads {
  std::vector<double> busy_seconds;
  std::vector<double> read_bytes;
};

/// Once what is done by now is told.
absl::StatusOr<StageLoads> ToldLoads(const BenchCluster& cluster) {
  absl::SleepFor(kLoadIsTold);
  CARAVAN_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, cluster.Status());
  StageLoads loads;
  for (const v1::WorkerStatus& worker : status.workers()) {
    loads.busy_seconds.push_back(worker.load().busy_s());
    loads.read_bytes.push_back(static_cast<double>(worker.load().experts().read_bytes()));
  }
  return loads;
}

/// Adds to `sum` what there is more than before, a round.
void AddSince(const std::vector<double>& before, const std::vector<double>& now, int rounds,
              std::vector<double>& sum) {
  sum.resize(now.size());
  for (size_t i = 0; i < now.size(); ++i) sum[i] += (now[i] - before[i]) / rounds;
}

std::string Self() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

/// A probe that prints JSON.
class Probe {
 public:
  static absl::StatusOr<Probe> Start(const std::string& box_command, int box,
                                     const std::vector<std::string>& arguments) {
    Subprocess::Options options;
    if (!box_command.empty()) options.command = {box_command, absl::StrCat(box)};
    options.command.push_back(Self());
    options.command.insert(options.command.end(), arguments.begin(), arguments.end());
    std::string path = (std::filesystem::temp_directory_path() / "caravan-probe-XXXXXX").string();
    const int file = ::mkstemp(path.data());
    if (file < 0) return absl::InternalError(absl::StrCat("cannot make ", path));
    ::close(file);
    options.stdout_path = path;
    CARAVAN_ASSIGN_OR_RETURN(Subprocess process, Subprocess::Start(options));
    return Probe(std::move(process), std::move(path));
  }

  /// Errors: Internal - it failed.
  absl::StatusOr<nlohmann::json> Result() {
    const std::optional<int> exit_code = process_.Wait(kProbeTimeout);
    absl::StatusOr<std::string> text = ReadFile(path_, int64_t{1} << 20);
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
    CARAVAN_RETURN_IF_ERROR(text.status());
    nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (exit_code != 0 || json.is_discarded()) {
      return absl::InternalError("a box could not be probed");
    }
    return json;
  }

 private:
  Probe(Subprocess process, std::string path)
      : process_(std::move(process)), path_(std::move(path)) {}

  Subprocess process_;
  std::string path_;
};

}  // namespace

int64_t PipelineBench::MostJobs() const {
  int64_t most = 1;
  for (const PipelineLoad& load : options_.loads) most = std::max<int64_t>(most, load.jobs);
  return most;
}

int64_t PipelineBench::ContextTokens() const {
  int64_t most = 0;
  for (const PipelineLoad& load : options_.loads) {
    most = std::max<int64_t>(most, load.prompt_tokens * 3 / 2 + load.reply_tokens * 5 / 4);
  }
  // A block more for each, which the scheduler leaves to those that run when another begins.
  return WholeKvBlocks(most) + kKvBlockTokens;
}

absl::Status PipelineBench::ProbeBoxes(int workers, ProbedBoxes& probed) {
  std::set<int> counts;
  for (const PipelineLoad& load : options_.loads) counts.insert(AtWork(workers, load));
  for (const int at_once : counts) {
    CARAVAN_ASSIGN_OR_RETURN(std::vector<Box> boxes, ProbeAtOnce(at_once));
    std::vector<std::vector<Box>>& of_count = probed[at_once];
    of_count.resize(boxes.size());
    for (size_t i = 0; i < boxes.size(); ++i) of_count[i].push_back(std::move(boxes[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Box>> PipelineBench::ProbeAtOnce(int count) {
  std::fprintf(stderr, "probing %d box%s at once\n", count, count == 1 ? "" : "es");
  std::vector<Probe> probes;
  for (int i = 0; i < count; ++i) {
    CARAVAN_ASSIGN_OR_RETURN(
        Probe probe,
        Probe::Start(
            options_.box_command, i,
            {"probe", "--json", "--device", "cpu", "--name", absl::StrCat("box-", i), "--threads",
             absl::StrCat(options_.threads), "--disk", options_.disk_directory, "--size",
             kScratchBytes, "--seconds", absl::StrCat(options_.probe_seconds)}));
    probes.push_back(std::move(probe));
  }
  std::vector<Box> boxes;
  for (Probe& probe : probes) {
    CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, probe.Result());
    CARAVAN_ASSIGN_OR_RETURN(boxes.emplace_back(), BoxFromJson(json, "probe"));
  }
  return boxes;
}

absl::StatusOr<Box::Network> PipelineBench::ProbeNetwork(const std::string& address) {
  CARAVAN_ASSIGN_OR_RETURN(
      Probe probe,
      Probe::Start(options_.box_command, 0,
                   {"probe", "link", address, "--json", "--activations",
                    absl::StrCat(model_.config().hidden_size * static_cast<int64_t>(sizeof(float))),
                    "--seconds", absl::StrCat(options_.probe_seconds)}));
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, probe.Result());
  LinkProbe link;
  link.address = address;
  link.small.median_seconds = json.at("round_trips").at("small").at("median_seconds");
  link.to_bytes_per_second = json.at("to_bytes_per_second");
  link.from_bytes_per_second = json.at("from_bytes_per_second");
  return NetworkOf(link);
}

absl::Status PipelineBench::RunRound(BenchCluster& cluster, int round, std::mt19937_64& texts,
                                     std::vector<LoadRun>& runs) {
  CARAVAN_ASSIGN_OR_RETURN(StageLoads before, ToldLoads(cluster));
  for (size_t number = 0; number < runs.size(); ++number) {
    // The same lengths each time.
    std::mt19937_64 lengths(options_.seed);
    const std::vector<v1::SubmitRequest> requests =
        MakeRequests(model_, options_.loads[number], lengths, texts);
    CARAVAN_ASSIGN_OR_RETURN(const Wave wave, RunJobs(cluster, requests));
    CARAVAN_ASSIGN_OR_RETURN(StageLoads after, ToldLoads(cluster));
    LoadRun& load = runs[number];
    load.rounds.push_back(FiguresOf(wave));
    AddSince(before.busy_seconds, after.busy_seconds, options_.rounds, load.run.stage_busy_seconds);
    AddSince(before.read_bytes, after.read_bytes, options_.rounds, load.run.stage_read_bytes);
    before = std::move(after);
    if (round > 0) continue;
    for (const Reply& reply : wave.replies) {
      load.run.jobs.push_back({.arrival_seconds = static_cast<double>(load.run.jobs.size()) *
                                                  absl::ToDoubleSeconds(kArrivalGap),
                               .prompt_tokens = reply.finished.prompt_tokens(),
                               .reply_tokens = reply.finished.completion_tokens()});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PipelineRun>> PipelineBench::Measure(int workers) {
  BenchCluster::Options options;
  options.model = options_.model;
  options.workers = workers;
  options.threads = options_.threads;
  options.kv_dtype = options_.kv_dtype;
  options.box_command = options_.box_command;
  options.link = options_.link;
  const int64_t ram = options_.ram / workers;
  if (options_.ram > 0) {
    // Where experts lie is to follow from the memory alone.
    options.worker_arguments = {"--ram", absl::StrCat(ram), "--expert-heat",
                                "off",   "--guess-experts", "off"};
  }
  options.coordinator_arguments = {
      "--context",           absl::StrCat(ContextTokens()),
      "--kv-tokens",         absl::StrCat(MostJobs() * ContextTokens()),
      "--prefill-chunk",     absl::StrCat(kPrefillChunk),
      "--heartbeat-timeout", kHeartbeatTimeout};
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<BenchCluster> cluster,
                           BenchCluster::Start(options));
  std::mt19937_64 generator(options_.seed + 17);
  std::mt19937_64 texts(options_.seed + 18);
  const absl::Time deadline = absl::Now() + kBenchLoadTimeout;
  while (true) {
    // The first replies warm everything up.
    const absl::StatusOr<Wave> warm =
        RunJobs(*cluster, MakeRequests(model_, {.jobs = 4, .prompt_tokens = 48, .reply_tokens = 4},
                                       generator, texts));
    if (warm.ok()) break;
    if (!absl::IsUnavailable(warm.status()) || absl::Now() > deadline) return warm.status();
    CARAVAN_RETURN_IF_ERROR(cluster->Check());
    absl::SleepFor(absl::Milliseconds(50));
  }
  CARAVAN_ASSIGN_OR_RETURN(const v1::GetStatusResponse status, cluster->Status());
  std::optional<Box::Network> network;
  if (workers > 1) {
    CARAVAN_ASSIGN_OR_RETURN(network, ProbeNetwork(status.workers(1).address()));
  }

  std::vector<LoadRun> loads(options_.loads.size());
  ProbedBoxes probed;
  CARAVAN_RETURN_IF_ERROR(ProbeBoxes(workers, probed));
  for (int round = 0; round < options_.rounds; ++round) {
    CARAVAN_RETURN_IF_ERROR(RunRound(*cluster, round, texts, loads));
    CARAVAN_RETURN_IF_ERROR(ProbeBoxes(workers, probed));
  }
  std::vector<PipelineRun> runs;
  for (size_t number = 0; number < loads.size(); ++number) {
    const PipelineLoad& load = options_.loads[number];
    PipelineRun& run = runs.emplace_back(std::move(loads[number].run));
    run.measured = MedianOf(loads[number].rounds);
    run.name = absl::StrFormat("%s, %d worker%s, %d job%s", options_.label, workers,
                               workers == 1 ? "" : "s", load.jobs, load.jobs == 1 ? "" : "s");
    run.kv_dtype = options_.kv_dtype;
    run.kv_jobs = MostJobs();
    run.context_tokens = ContextTokens();
    run.prefill_chunk = kPrefillChunk;
    const int at_work = AtWork(workers, load);
    for (int i = 0; i < workers; ++i) {
      const auto part = static_cast<size_t>(i % at_work);
      Box box = MedianOf(probed.at(at_work)[part]);
      if (ram > 0) box.memory.bytes = ram;
      if (network.has_value()) box.network = *network;
      run.boxes.push_back(std::move(box));
      const v1::WorkerStatus& worker = status.workers(i);
      StageSpec stage;
      stage.first_layer = static_cast<int>(worker.stage().first_layer());
      stage.end_layer = static_cast<int>(worker.stage().end_layer());
      stage.embeds = worker.stage().embeds();
      stage.has_head = worker.stage().has_head();
      run.stages.push_back(stage);
      run.stage_expert_slots.push_back(worker.expert_slots());
    }
    // Boxes share the machine's disk too, but those that read it alone.
    const auto set = probed.lower_bound(std::max(1, Reading(run.stage_expert_slots)));
    const auto& [readers, boxes] = set != probed.end() ? *set : *probed.rbegin();
    for (size_t i = 0; i < run.boxes.size(); ++i) {
      run.boxes[i].disk.read_bytes = MedianOf(boxes[i % static_cast<size_t>(readers)], DiskRate);
    }
    std::fprintf(stderr, "%s: %.2f tokens/s, first token %.3f s, a token %.1f ms\n",
                 run.name.c_str(), run.measured.tokens_per_second, run.measured.first_token_seconds,
                 1e3 * run.measured.seconds_per_token);
  }
  return runs;
}

}  // namespace caravan
