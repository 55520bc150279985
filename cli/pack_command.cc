// caravan pack: a model in the form that workers read fastest, in the number formats that fit.

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/progress_bar.h"
#include "cli/stop_signals.h"
#include "cluster/machine.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/stored_model.h"

namespace caravan {
namespace {

struct PackFlags {
  std::string model;
  std::string output;
  std::string check;
  std::string preset;
  std::string experts;
  std::string dense;
  std::string layers;
  int num_threads = 0;
};

/// The format that `flag` names. Errors: InvalidArgument - there is none; names the flag.
absl::Status SetType(const char* flag, const std::string& name, std::optional<DType>& type) {
  if (name.empty()) return absl::OkStatus();
  const absl::StatusOr<std::optional<DType>> parsed = ParsePackType(name);
  if (!parsed.ok()) return Annotate(parsed.status(), flag);
  type = *parsed;
  return absl::OkStatus();
}

absl::StatusOr<PackTypes> TypesOf(const PackFlags& flags) {
  PackTypes types;
  if (!flags.preset.empty()) {
    const absl::StatusOr<PackTypes> preset = PackPreset(flags.preset);
    if (!preset.ok()) return Annotate(preset.status(), "--preset");
    types = *preset;
  }
  CARAVAN_RETURN_IF_ERROR(SetType("--experts", flags.experts, types.experts));
  CARAVAN_RETURN_IF_ERROR(SetType("--dense", flags.dense, types.dense));
  return types;
}

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

/// Weights and bytes of what is packed, routed experts apart from the rest.
std::string DescribePlan(const PackManifest& plan) {
  struct Sum {
    int64_t weights = 0;
    int64_t bytes = 0;
  };
  Sum experts;
  Sum dense;
  const auto add = [](const std::vector<PackedTensor>& tensors, int64_t count, Sum& sum) {
    for (const PackedTensor& tensor : tensors) {
      sum.bytes += count * tensor.info.num_bytes();
      if (tensor.info.shape.size() == 2 && !absl::EndsWith(tensor.name, "_scale_inv")) {
        sum.weights += count * tensor.info.num_elements();
      }
    }
  };
  for (const PackedFile& file : plan.files) {
    add(file.tensors, 1, dense);
    if (file.experts.has_value()) add(file.experts->tensors, file.experts->count, experts);
  }
  const auto describe = [](const char* name, const Sum& sum) {
    if (sum.weights == 0) return std::string();
    return absl::StrFormat("%-16s %14d weights  %10s  %6.3f bits a weight\n", name, sum.weights,
                           FormatByteSize(sum.bytes),
                           8.0 * static_cast<double>(sum.bytes) / static_cast<double>(sum.weights));
  };
  return absl::StrCat(
      describe("routed experts", experts), describe("everything else", dense),
      describe("together", {experts.weights + dense.weights, experts.bytes + dense.bytes}));
}

absl::Status RunPack(const PackFlags& flags) {
  const StopSignals signals;
  PackOptions options;
  CARAVAN_ASSIGN_OR_RETURN(options.types, TypesOf(flags));
  CARAVAN_ASSIGN_OR_RETURN(options.layers, LayersOf(flags.layers));
  options.output = flags.output;
  CARAVAN_ASSIGN_OR_RETURN(const Machine machine, ProbeMachine());
  options.num_threads = flags.num_threads > 0 ? flags.num_threads : machine.num_cores;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> source, OpenStoredModel(flags.model));
  CARAVAN_ASSIGN_OR_RETURN(const PackManifest plan,
                           PlanPack(*source, options.types, options.layers));
  std::fputs(DescribePlan(plan).c_str(), stdout);
  std::fflush(stdout);
  ProgressBar bar("packing");
  options.progress = [&](int64_t done, int64_t total) {
    bar.Show(done, total);
    return !signals.token().stop_requested();
  };
  const absl::Status packed = Pack(*source, options);
  if (!packed.ok()) bar.Break();
  return packed;
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
              model->manifest().files.size());
  return absl::OkStatus();
}

}  // namespace

void AddPackCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "pack", "Quantize a checkpoint and lay it out for workers; or check what was packed");
  const auto flags = std::make_shared<PackFlags>();
  AddConfigOption(*command);
  CLI::Option* const model =
      command->add_option("--model", flags->model,
                          "What to pack: a directory in Hugging Face's layout, or a GGUF file");
  CLI::Option* const output = command->add_option(
      "--out", flags->output,
      "Directory to make; an interrupted pack goes on when the command is given again");
  model->needs(output);
  output->needs(model);
  command
      ->add_option("--preset", flags->preset,
                   "8bit (all q8_0), 4bit (experts q4_K, the rest q8_0) or 2bit (experts q2_K, the "
                   "rest q8_0); without it formats are kept")
      ->needs(model);
  command
      ->add_option("--experts", flags->experts,
                   "Format of the routed experts: q8_0, q6_K, q5_K, q4_K, q4_0, q3_K, q2_K, bf16, "
                   "f16, f32 or keep")
      ->needs(model);
  command
      ->add_option("--dense", flags->dense,
                   "Format of the other matrices, but for the router, which is kept")
      ->needs(model);
  command->add_option("--layers", flags->layers, "Only layers A-B, counted from 0")->needs(model);
  command->add_option("--threads", flags->num_threads, "Threads that quantize; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
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
