// What a stage's layers take on a card that holds all of their experts, or a part: tokens a second,
// who computed what, and what the measured costs foretold. docs/performance.md says how it is run.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/int_math.h"
#include "base/median.h"
#include "bench/must_be.h"
#include "cluster/pipeline_plan.h"
#include "model/step_memory.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"
#include "worker/compute_device.h"
#include "worker/process_memory.h"
#include "worker/stage.h"

namespace caravan {
namespace {

struct Flags {
  std::string model;
  int first_layer = 0;
  int end_layer = 0;
  DeviceOptions device = {"cuda:0", 0, 1, {}};
  std::string vram;
  std::string ram = "16GiB";
  std::vector<int64_t> rows = {1, 8, 64, 256};
  int64_t context = 1024;
  int64_t prompt = 512;
  int steps = 10;
};

struct Totals {
  // Of a step: all of it, its experts, and what the costs foretold of those.
  std::vector<double> seconds;
  std::vector<double> experts_seconds;
  std::vector<double> foretold_seconds;
  CardExperts::Counters experts;
};

CardExperts::Counters Since(const CardExperts::Counters& now, const CardExperts::Counters& then) {
  CardExperts::Counters since;
  since.hits = now.hits - then.hits;
  since.copies = now.copies - then.copies;
  since.on_cpu = now.on_cpu - then.on_cpu;
  since.promotions = now.promotions - then.promotions;
  since.took = now.took - then.took;
  since.foretold = now.foretold - then.foretold;
  return since;
}

class Bench {
 public:
  explicit Bench(const Flags& flags)
      : flags_(flags), model_(MustBe(OpenStoredModel(flags.model))), rng_(1) {
    const ModelConfig& config = model_->config();
    spec_ = {flags.first_layer, flags.end_layer, false, false, false};
    max_rows_ = std::max(flags.prompt, *std::max_element(flags.rows.begin(), flags.rows.end()));
    const std::unique_ptr<ComputeDevice> device = MustBe(OpenComputeDevice(flags.device));
    const LayerCost cost = MustBe(CostOfStoredModel(*model_, false)).Of(spec_);
    Stage::Options options;
    options.kv_dtype = DType::kF16;
    blocks_ = CeilDiv(flags.context + 1, kKvBlockTokens);
    options.kv_budget_bytes = *std::max_element(flags.rows.begin(), flags.rows.end()) * blocks_ *
                              kKvBlockTokens * 2 * cost.kv_values_per_token;
    options.max_step_tokens = max_rows_;
    const int64_t steps = ComputeCardStepMemory(config, max_rows_, kKvBlockTokens).Of(spec_, 1);
    const int64_t left = device->memory_budget_bytes() - cost.always_active_bytes() -
                         options.kv_budget_bytes - steps;
    std::printf("%s, %s of it: always-active weights %s, KV cache %s, steps %s\n",
                device->Name().c_str(), FormatByteSize(device->memory_budget_bytes()).c_str(),
                FormatByteSize(cost.always_active_bytes()).c_str(),
                FormatByteSize(options.kv_budget_bytes).c_str(), FormatByteSize(steps).c_str());
    if (left < cost.expert_bytes) {
      options.card_expert_bytes = left;
      options.expert_budget_bytes = MustBe(ParseByteSize(flags.ram));
      options.cpu = MustBe(device->MakeCpu());
    }
    stage_ =
        MustBe(Stage::Create(config, spec_, *model_, MustBe(device->MakeBackend(config, max_rows_)),
                             options, [](int64_t, int64_t) { return true; }));
    if (const CardExperts* const experts = stage_->card_experts(); experts != nullptr) {
      std::printf("%d of %d experts have slots on the card, %d in memory\n", experts->num_slots(),
                  static_cast<int>(cost.num_experts), stage_->experts()->num_slots());
      const ExpertCosts& costs = experts->costs();
      std::printf(
          "an expert's copy: %.3f ms; a visit %.3f, a row of it %.5f\n"
          "| rows | ms on the CPU | beside copies | a copy's then | on the card |\n"
          "|---|---|---|---|---|\n",
          1e3 * costs.copy_seconds, 1e3 * costs.visit_seconds, 1e3 * costs.visit_row_seconds);
      for (const ExpertCosts::Point& point : costs.points) {
        std::printf("| %d | %.3f | %.3f | %.3f | %.4f |\n", static_cast<int>(point.rows),
                    1e3 * point.cpu_seconds, 1e3 * point.cpu_beside_seconds,
                    1e3 * point.copy_beside_seconds, 1e3 * point.card_seconds);
      }
      std::printf("\n");
    }
    std::printf(
        "| step | ms a layer | tokens/s of a layer | experts a layer: on the card | copied | by "
        "the "
        "CPU | promoted | their ms | foretold | of it "
        "|\n|---|---|---|---|---|---|---|---|---|---|\n");
  }

  void Run() {
    for (const int64_t rows : flags_.rows) {
      Print("decode of " + std::to_string(rows), rows, Time([&] { return Decode(rows); }));
    }
    Print("prompt of " + std::to_string(flags_.prompt), flags_.prompt,
          Time([&] { return Prompt(); }));
  }

 private:
  /// Fills in what every step has: the hidden states of so many tokens.
  v1::Step Filled(v1::Step step, int64_t rows) {
    std::normal_distribution<float> normal;
    std::vector<float> hidden(static_cast<size_t>(rows * model_->config().hidden_size));
    for (float& value : hidden) value = normal(rng_);
    step.set_activations(hidden.data(), hidden.size() * sizeof(float));
    return step;
  }

  v1::Step Decode(int64_t rows) {
    v1::Step step;
    for (int64_t row = 0; row < rows; ++row) {
      v1::SequenceSlice& slice = *step.add_slices();
      slice.set_sequence_id(static_cast<uint64_t>(row + 1));
      slice.set_first_position(static_cast<uint32_t>(flags_.context));
      slice.add_token_ids(0);
      slice.set_output(v1::SLICE_OUTPUT_NONE);
      for (int64_t block = 0; block < blocks_; ++block) {
        slice.add_kv_blocks(static_cast<uint32_t>(row * blocks_ + block));
      }
    }
    return Filled(std::move(step), rows);
  }

  v1::Step Prompt() {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(1);
    slice.set_output(v1::SLICE_OUTPUT_NONE);
    for (int64_t i = 0; i < flags_.prompt; ++i) slice.add_token_ids(0);
    for (int64_t block = 0; block < CeilDiv(flags_.prompt, kKvBlockTokens); ++block) {
      slice.add_kv_blocks(static_cast<uint32_t>(block));
    }
    return Filled(std::move(step), flags_.prompt);
  }

  template <typename MakeStep>
  Totals Time(const MakeStep& make_step) {
    Totals totals;
    CardExperts::Counters before;
    for (int i = -2; i < flags_.steps; ++i) {  // two to warm up
      if (i == 0) before = Counters();
      v1::Step step = make_step();
      const CardExperts::Counters before_step = Counters();
      const absl::Duration begin = SteadyClock().Now();
      step = stage_->Run(std::move(step));
      const absl::Duration took = SteadyClock().Now() - begin;
      if (step.has_error()) MustBe(absl::InternalError(step.error().message()));
      if (i < 0) continue;
      const CardExperts::Counters experts = Since(Counters(), before_step);
      totals.seconds.push_back(absl::ToDoubleSeconds(took));
      totals.experts_seconds.push_back(absl::ToDoubleSeconds(experts.took));
      totals.foretold_seconds.push_back(absl::ToDoubleSeconds(experts.foretold));
    }
    totals.experts = Since(Counters(), before);
    return totals;
  }

  CardExperts::Counters Counters() const {
    return stage_->card_experts() == nullptr ? CardExperts::Counters()
                                             : stage_->card_experts()->counters();
  }

  void Print(const std::string& what, int64_t rows, const Totals& totals) {
    const auto layers = static_cast<double>(spec_.num_layers());
    const double layer = Median(totals.seconds) / layers;
    const double theirs = Median(totals.experts_seconds) / layers;
    const double foretold = Median(totals.foretold_seconds) / layers;
    const auto visits = static_cast<double>(flags_.steps * spec_.num_layers());
    const CardExperts::Counters& experts = totals.experts;
    std::printf(
        "| %s | %.3f | %.0f | %.1f | %.1f | %.1f | %.1f | %.3f | %.3f | %.2f |\n", what.c_str(),
        1e3 * layer, static_cast<double>(rows) / layer, static_cast<double>(experts.hits) / visits,
        static_cast<double>(experts.copies) / visits, static_cast<double>(experts.on_cpu) / visits,
        static_cast<double>(experts.promotions) / visits, 1e3 * theirs, 1e3 * foretold,
        theirs > 0 ? foretold / theirs : 1);
    std::fflush(stdout);
  }

  const Flags& flags_;
  const std::unique_ptr<StoredModel> model_;
  std::mt19937_64 rng_;
  StageSpec spec_;
  int64_t max_rows_ = 0;
  int64_t blocks_ = 0;  // of a sequence
  std::unique_ptr<Stage> stage_;
};

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Flags flags;
  flags.device.cpu.num_threads = 1;
  CLI::App app(
      "A stage's layers on a card, with its experts there, in the host's memory or on disk");
  app.add_option("--model", flags.model, "A packed model")->required();
  app.add_option("--first-layer", flags.first_layer)->required();
  app.add_option("--end-layer", flags.end_layer)->required();
  app.add_option("--device", flags.device.name)->capture_default_str();
  app.add_option("--vram", flags.vram, "SIZE; all that is free if not given");
  app.add_option("--ram", flags.ram, "SIZE, for experts that the card has no room for")
      ->capture_default_str();
  app.add_option("--threads", flags.device.cpu.num_threads)->check(CLI::Range(1, 1024));
  app.add_option("--rows", flags.rows)->delimiter(',')->capture_default_str();
  app.add_option("--context", flags.context, "Tokens before each row")->capture_default_str();
  app.add_option("--prompt", flags.prompt, "Tokens")->capture_default_str();
  app.add_option("--steps", flags.steps)->check(CLI::Range(1, 10000))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (!flags.vram.empty()) {
    flags.device.memory_bytes = caravan::MustBe(caravan::ParseByteSize(flags.vram));
  }
  caravan::Bench(flags).Run();
  return 0;
}
