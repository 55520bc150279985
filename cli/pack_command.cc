// caravan pack: a model in the form that workers read fastest, in the number formats that fit.

#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/pack_flags.h"
#include "cli/progress_bar.h"
#include "cli/stop_signals.h"
#include "cli/validators.h"
#include "model/pack/importance.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/stored_model.h"

namespace caravan {
namespace {

struct PackCommandFlags {
  std::string model;
  std::string output;
  std::string check;
  std::string layers;
  std::string importance;
  PackFlags pack;
};

/// "3-5" is [3, 6), "3" is [3, 4).
absl::StatusOr<std::optional<std::pair<int, int>>> LayersOf(const std::string& text) {
  if (text.empty()) return std::optional<std::pair<int, int>>();
  const std::vector<std::string> ends = absl::StrSplit(text, absl::MaxSplits('-', 1));
  int first = 0;
  int last = 0;
  if (!absl::SimpleAtoi(ends.front(), &first) || !absl::SimpleAtoi(ends.back(), &last) ||
      last < first || last == std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--layers: \"", text, "\" is no range of layers such as 3-5"));
  }
  return std::optional(std::pair(first, last + 1));
}

absl::Status RunPack(const PackCommandFlags& flags) {
  PackOptions options;
  CARAVAN_ASSIGN_OR_RETURN(options.types, flags.pack.Types());
  CARAVAN_ASSIGN_OR_RETURN(options.layers, LayersOf(flags.layers));
  options.output = flags.output;
  CARAVAN_ASSIGN_OR_RETURN(options.num_threads, flags.pack.Threads());
  Importance importance;
  if (!flags.importance.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(importance, Importance::Read(flags.importance));
    options.importance = &importance;
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> source, OpenStoredModel(flags.model));
  return PackVisibly(*source, std::move(options));
}

absl::Status RunCheck(const std::string& directory) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<PackedModel> model, PackedModel::Open(directory));
  ProgressBar bar("checking");
  const absl::Status checked = model->CheckHashes([&](int64_t done, int64_t total) {
    bar.Show(done, total);
    return !signals.token().stop_requested();
  });
  if (!checked.ok()) {
    bar.Break();
    return checked;
  }
  std::printf("%s: %zu files are as they were packed\n", directory.c_str(),
              model->manifest().files.size() + model->manifest().texts.size());
  return absl::OkStatus();
}

}  // namespace

void AddPackCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "pack", "Quantize a checkpoint and lay it out for workers; or check what was packed");
  const auto flags = std::make_shared<PackCommandFlags>();
  AddConfigOption(*command);
  CLI::Option* const model =
      command->add_option("--model", flags->model,
                          "What to pack: a directory in Hugging Face's layout, or a GGUF file");
  CLI::Option* const output = command->add_option(
      "--out", flags->output,
      "Directory to make; an interrupted pack goes on when the command is given again");
  output->check(NotEmpty());
  model->needs(output);
  output->needs(model);
  flags->pack.AddTo(*command, model, "formats are kept");
  command
      ->add_option("--imatrix", flags->importance,
                   "File of caravan calibrate: quantize with the least error where columns matter")
      ->needs(model);
  command->add_option("--layers", flags->layers, "Only layers A-B, counted from 0")->needs(model);
  CLI::Option* const check = command->add_option(
      "--check", flags->check, "Compare the hashes of the packed model in this directory");
  check->excludes(model);
  command->callback([flags, &body] {
    if (flags->model.empty() && flags->check.empty()) {
      throw CLI::RequiredError("--model with --out, or --check");
    }
    body = [flags] {
      return ReportStatus(flags->check.empty() ? RunPack(*flags) : RunCheck(flags->check));
    };
  });
}

}  // namespace caravan
