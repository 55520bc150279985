// What a worker reads when another plan gives it other layers, and how warm it serves then.
//
//   stage_change_bench --model PACK --ram 3GiB [--layers 0-4,0-3,0-4] [--steps 60] [--first 5,20]
//
// Loads a stage of each range of layers (without the head) in turn, as LoadStage orders do, in a
// worker whose experts stay on disk, and has each run --steps steps of one random token. Of each it
// prints how long it took from the order until the stage was ready and until its first step was
// done; what was read until it was ready, of weights and of experts, and of experts by its first
// --first steps, with how many of those that these wanted were in memory; and the most memory that
// the process had since the order. Scores of experts are kept in a directory of this run's own. To
// compare versions, build it of both.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/bounded_queue.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/peak_memory.h"
#include "bench/must_be.h"
#include "caravan/v1/cluster.pb.h"
#include "cluster/activation_channel.h"
#include "cluster/pipeline_plan.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/pack/packed_model.h"
#include "model/tensor_table.h"
#include "tests/worker/borrowed_source.h"
#include "worker/worker.h"

namespace caravan {
namespace {

constexpr int64_t kKvBytes = int64_t{128} << 20;

struct Flags {
  std::string model;
  std::string ram;
  std::vector<std::string> layers = {"0-4", "0-3", "0-4"};
  int steps = 60;
  std::vector<int> first = {5, 20};
  int threads = 2;
};

/// Counts what is read of tensors: all but the experts that a store reads.
class CountedSource : public BorrowedSource {
 public:
  CountedSource(const TensorSource& source, std::atomic<int64_t>* bytes)
      : BorrowedSource(source), bytes_(bytes) {}
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    *bytes_ += std::ssize(out);
    return BorrowedSource::ReadPart(name, offset, out);
  }

 private:
  std::atomic<int64_t>* const bytes_;
};

/// Where steps go that leave the stage.
class Home : public ActivationChannel {
 public:
  explicit Home(BoundedQueue<v1::Step>* steps) : steps_(steps) {}
  absl::Status Send(v1::Step step) override {
    return steps_->Push(std::move(step)) ? absl::OkStatus() : absl::CancelledError("over");
  }
  void Close() override {}

 private:
  BoundedQueue<v1::Step>* const steps_;
};

StageSpec ParseLayers(const std::string& text) {
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  StageSpec stage;
  if (ends.size() != 2 || !absl::SimpleAtoi(ends[0], &stage.first_layer) ||
      !absl::SimpleAtoi(ends[1], &stage.end_layer)) {
    MustBe(absl::InvalidArgumentError(absl::StrCat("--layers: not FIRST-END: ", text)));
  }
  stage.embeds = stage.first_layer == 0;
  return stage;
}

/// Of the experts' slots: what weights and KV cache leave of the budget.
int64_t ExpertBudget(const PackedModel& model, const StageSpec& stage, int64_t ram_bytes) {
  std::vector<TensorSpec> specs = StageTensors(model.config(), stage);
  std::erase_if(specs, [](const TensorSpec& spec) {
    return spec.tensor_class == TensorClass::kRoutedExpert;
  });
  const int64_t left = ram_bytes - kKvBytes - MustBe(CheckTensors(model, specs));
  if (left <= 0) MustBe(absl::InvalidArgumentError("--ram: leaves nothing for experts"));
  return left;
}

/// So that PeakMemory begins anew.
void ForgetPeakMemory() { std::ofstream("/proc/self/clear_refs") << 5; }

v1::Step MakeStep(const ModelConfig& config, const StageSpec& stage, uint64_t plan, int index,
                  std::mt19937_64& rng) {
  v1::Step step;
  step.set_plan_version(plan);
  step.set_step_id(static_cast<uint64_t>(index + 1));
  v1::SequenceSlice& slice = *step.add_slices();
  slice.set_sequence_id(1);
  slice.set_first_position(static_cast<uint32_t>(index));
  slice.add_token_ids(static_cast<uint32_t>(rng() % static_cast<uint64_t>(config.vocab_size)));
  for (int block = 0; block <= index / kKvBlockTokens; ++block) {
    slice.add_kv_blocks(static_cast<uint32_t>(block));
  }
  slice.set_output(v1::SLICE_OUTPUT_NONE);
  if (!stage.embeds) {
    step.mutable_activations()->resize(static_cast<size_t>(config.hidden_size) * sizeof(float));
  }
  return step;
}

int Run(const Flags& flags) {
  const std::unique_ptr<PackedModel> model = MustBe(PackedModel::Open(flags.model));
  const int64_t ram_bytes = MustBe(ParseByteSize(flags.ram));
  std::string heat = (std::filesystem::temp_directory_path() / "stage_change_XXXXXX").string();
  if (::mkdtemp(heat.data()) == nullptr) MustBe(absl::InternalError("no temporary directory"));

  std::atomic<int64_t> weight_bytes = 0;
  BoundedQueue<v1::Step> steps(8);
  BoundedQueue<v1::WorkerReport> reports(10000);
  Worker::Environment environment;
  environment.name = "worker";
  environment.expert_heat = heat;
  environment.make_backend = [&](const ModelConfig&, int64_t) {
    return MakeCpuBackend({.num_threads = flags.threads});
  };
  environment.open_model = [&](const v1::LoadStage&, const LoadProgress&,
                               std::stop_token) -> absl::StatusOr<std::unique_ptr<TensorSource>> {
    return std::make_unique<CountedSource>(*model, &weight_bytes);
  };
  environment.open_next_hop =
      [&](const v1::LoadStage&, std::function<void(absl::Status)>,
          std::stop_token) -> absl::StatusOr<std::unique_ptr<ActivationChannel>> {
    return std::make_unique<Home>(&steps);
  };
  environment.show_progress = [](int64_t, int64_t) {};
  environment.report = [&](v1::WorkerReport report) {
    if (!report.has_progress()) reports.TryPush(std::move(report));
  };
  Worker worker(environment);

  std::mt19937_64 rng(1);
  constexpr double kMiB = 1 << 20;
  uint64_t plan = 0;
  for (const std::string& text : flags.layers) {
    const StageSpec stage = ParseLayers(text);
    v1::WorkerOrder order;
    v1::LoadStage& load = *order.mutable_load_stage();
    load.set_plan_version(++plan);
    *load.mutable_stage() = ToProto(stage);
    load.mutable_model()->set_config_json(model->config_json());
    load.mutable_model()->set_fingerprint(model->fingerprint());
    load.set_kv_budget_bytes(kKvBytes);
    load.set_expert_budget_bytes(static_cast<uint64_t>(ExpertBudget(*model, stage, ram_bytes)));
    load.set_max_step_tokens(8);

    ForgetPeakMemory();
    weight_bytes = 0;
    const v1::ExpertLoad before = worker.load().experts();
    const absl::Duration begin = SteadyClock().Now();
    const auto seconds = [&] { return absl::ToDoubleSeconds(SteadyClock().Now() - begin); };
    worker.Handle(order);
    const v1::WorkerReport report = *reports.Pop();
    if (!report.has_ready()) MustBe(absl::InternalError(report.failure().message()));
    const double ready = seconds();
    const v1::ExpertLoad at_ready = worker.load().experts();
    std::printf("%s: slots of %.0f MiB; ready %.2f s, read %.0f MiB of weights, %.0f of experts;",
                text.c_str(), static_cast<double>(load.expert_budget_bytes()) / kMiB, ready,
                static_cast<double>(weight_bytes.load()) / kMiB,
                static_cast<double>(at_ready.read_bytes() - before.read_bytes()) / kMiB);
    for (int i = 0; i < flags.steps; ++i) {
      MustBe(worker.Receive(MakeStep(model->config(), stage, plan, i, rng)));
      const v1::Step done = *steps.Pop();
      if (done.has_error()) MustBe(absl::InternalError(done.error().message()));
      const double now = seconds();
      if (i == 0) std::printf(" first step %.2f s;", now);
      for (const int first : flags.first) {
        if (first != i + 1) continue;
        const v1::ExpertLoad load_now = worker.load().experts();
        const auto hits = static_cast<double>(load_now.hits() - at_ready.hits());
        const auto misses = static_cast<double>(load_now.misses() - at_ready.misses());
        std::printf(" first %d: %.0f%% hits, %.0f MiB, %.1f tokens/s;", first,
                    100 * hits / std::max(1.0, hits + misses),
                    static_cast<double>(load_now.read_bytes() - at_ready.read_bytes()) / kMiB,
                    first / (now - ready));
      }
    }
    std::printf(" peak %.0f MiB\n", static_cast<double>(PeakMemory(::getpid())) / kMiB);
    std::fflush(stdout);
  }
  worker.Drop();
  std::filesystem::remove_all(heat);
  return 0;
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Flags flags;
  CLI::App app("What a worker reads when another plan gives it other layers");
  app.add_option("--model", flags.model, "A packed model")->required();
  app.add_option("--ram", flags.ram, "Of the stage: weights, 128 MiB of KV cache, slots")
      ->required();
  app.add_option("--layers", flags.layers, "FIRST-END of each stage")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--steps", flags.steps, "Of each")
      ->check(CLI::Range(1, 3000))
      ->capture_default_str();
  app.add_option("--first", flags.first, "So many steps, each, are told of")
      ->delimiter(',')
      ->check(CLI::Range(1, 3000))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Of kernels")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return caravan::Run(flags);
}
