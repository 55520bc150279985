// caravan synth: a packed model of random weights, of any published shape, for benchmarks.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/pack_flags.h"
#include "cli/validators.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

struct SynthFlags {
  std::string config;
  std::string output;
  int num_layers = 0;
  uint64_t seed = 0;
  PackFlags pack;
};

absl::Status RunSynth(const SynthFlags& flags) {
  SyntheticModel::Options shape;
  shape.config_path = flags.config;
  shape.num_layers = flags.num_layers;
  shape.seed = flags.seed;
  CARAVAN_ASSIGN_OR_RETURN(shape.types, flags.pack.Types());
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<SyntheticModel> source,
                           SyntheticModel::Create(shape));
  // The weights come in their formats already.
  PackOptions options;
  options.output = flags.output;
  options.doing = "making";
  CARAVAN_ASSIGN_OR_RETURN(options.num_threads, flags.pack.Threads());
  return PackVisibly(*source, std::move(options));
}

}  // namespace

void AddSynthCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "synth", "Make a packed model of random weights in a published model's shape, to benchmark");
  const auto flags = std::make_shared<SynthFlags>();
  // Not AddConfigOption: here --config is the model's.
  CLI::Option* const config =
      command->add_option("--config", flags->config, "The config.json of the shape");
  config->required();
  command
      ->add_option("--out", flags->output,
                   "Directory to make; an interrupted run goes on when the command is given again")
      ->check(NotEmpty())
      ->required();
  command->add_option("--layers", flags->num_layers, "Only the first N layers; 0: all")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Other weights for another seed")
      ->capture_default_str();
  flags->pack.AddTo(*command, config,
                    "the formats are a checkpoint's: FP8 where the config has a "
                    "quantization_config, else BF16");
  command->callback([flags, &body] { body = [flags] { return ReportStatus(RunSynth(*flags)); }; });
}

}  // namespace caravan
