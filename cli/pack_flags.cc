#include "cli/pack_flags.h"

#include <cstdint>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cli/progress_bar.h"
#include "cli/stop_signals.h"
#include "cli/thread_count.h"

namespace caravan {
namespace {

/// The format that `flag` names. Errors: InvalidArgument - there is none; names the flag.
absl::Status SetType(const char* flag, const std::string& name, std::optional<DType>& type) {
  if (name.empty()) return absl::OkStatus();
  const absl::StatusOr<std::optional<DType>> parsed = ParsePackType(name);
  if (!parsed.ok()) return Annotate(parsed.status(), flag);
  type = *parsed;
  return absl::OkStatus();
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

}  // namespace

void PackFlags::AddFormats(CLI::App& command, CLI::Option* needed, const std::string& kept) {
  command
      .add_option("--preset", preset,
                  absl::StrCat("8bit (all q8_0), 4bit (experts q4_K, the rest q8_0) or 2bit "
                               "(experts q2_K, the rest q8_0); without it ",
                               kept))
      ->needs(needed);
  command
      .add_option(
          "--experts", experts,
          "Format of the routed experts: q8_0, q6_K, q5_K, q4_K, q4_0, q3_K, q2_K, fp8 (blocks "
          "of 128 x 128), bf16, f16, f32 or keep")
      ->needs(needed);
  command
      .add_option("--dense", dense,
                  "Format of the other matrices, but for the router, which is kept")
      ->needs(needed);
}

void PackFlags::AddTo(CLI::App& command, CLI::Option* needed, const std::string& kept) {
  AddFormats(command, needed, kept);
  command.add_option("--threads", num_threads, "Threads that compute; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

absl::StatusOr<PackTypes> PackFlags::Types() const {
  PackTypes types;
  if (!preset.empty()) {
    const absl::StatusOr<PackTypes> named = PackPreset(preset);
    if (!named.ok()) return Annotate(named.status(), "--preset");
    types = *named;
  }
  CARAVAN_RETURN_IF_ERROR(SetType("--experts", experts, types.experts));
  CARAVAN_RETURN_IF_ERROR(SetType("--dense", dense, types.dense));
  return types;
}

absl::StatusOr<int> PackFlags::Threads() const { return ThreadCount(num_threads); }

absl::Status PackVisibly(const StoredModel& source, PackOptions options) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const PackManifest plan,
                           PlanPack(source, options.types, options.layers));
  std::fputs(DescribePlan(plan).c_str(), stdout);
  std::fflush(stdout);
  ProgressBar bar(options.doing);
  options.progress = [&](int64_t done, int64_t total) {
    bar.Show(done, total);
    return !signals.token().stop_requested();
  };
  const absl::Status packed = Pack(source, options);
  if (!packed.ok()) bar.Break();
  return packed;
}

}  // namespace caravan
