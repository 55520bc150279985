// caravan verify: are this model's logits those of a reference?

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/local_pipeline.h"
#include "cli/validators.h"
#include "model/safetensors.h"

namespace caravan {
namespace {

struct VerifyFlags {
  LocalPipelineFlags pipeline;
  std::string golden;
  int64_t chunk = 512;
  double tolerance = 1e-4;
};

/// One list of tokens, and the logits that a reference has for its last rows.
struct GoldenList {
  std::string ids_name;
  std::string logits_name;
};

/// ids_i with logits_i, and ids with last_logits.
/// Errors: InvalidArgument - the file holds no such pair, or half of one.
absl::StatusOr<std::vector<GoldenList>> FindLists(const SafetensorsFile& golden) {
  std::vector<GoldenList> lists;
  for (const std::string& name : golden.TensorNames()) {
    if (name != "ids" && !absl::StartsWith(name, "ids_")) continue;
    const std::string logits =
        name == "ids" ? "last_logits" : absl::StrCat("logits_", name.substr(4));
    if (golden.Find(logits) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(golden.path(), ": has ", name, " but no ", logits));
    }
    lists.push_back({name, logits});
  }
  if (lists.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(golden.path(), ": holds no ids_0 with logits_0 to compare with"));
  }
  return lists;
}

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const absl::Span<const std::byte> bytes = file.Bytes(name);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// ||a - b|| / ||b||; infinity where either is not finite.
double RelativeError(absl::Span<const float> a, absl::Span<const float> b) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    norm += static_cast<double>(b[i]) * b[i];
  }
  const double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

/// Such as "F32 [16, 320]".
std::string Describe(const TensorInfo& info) {
  return absl::StrCat(DTypeName(info.dtype), " [", absl::StrJoin(info.shape, ", "), "]");
}

/// The relative error of one list.
absl::StatusOr<double> CompareList(const SafetensorsFile& golden, const GoldenList& list,
                                   const ModelConfig& config, PipelineDriver& driver) {
  const TensorInfo& ids_info = *golden.Find(list.ids_name);
  const TensorInfo& logits_info = *golden.Find(list.logits_name);
  const std::string origin = absl::StrCat(golden.path(), ": ");
  if (ids_info.dtype != DType::kI32 || ids_info.shape.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, list.ids_name, " is ", Describe(ids_info), " and must be I32 [tokens]"));
  }
  const int64_t num_tokens = ids_info.shape[0];
  if (logits_info.dtype != DType::kF32 || logits_info.shape.size() != 2 ||
      logits_info.shape[0] > num_tokens || logits_info.shape[1] != config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        origin, list.logits_name, " is ", Describe(logits_info), " and must be F32 [at most ",
        num_tokens, ", ", config.vocab_size, "] for this model and ", list.ids_name));
  }
  const absl::StatusOr<std::vector<float>> logits =
      ScorePrompt(driver, Values<int32_t>(golden, list.ids_name));
  if (!logits.ok()) return Annotate(logits.status(), absl::StrCat(origin, list.ids_name));
  const std::vector<float> expected = Values<float>(golden, list.logits_name);
  return RelativeError(absl::MakeConstSpan(*logits).last(expected.size()), expected);
}

absl::StatusOr<bool> Verify(const VerifyFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> golden,
                           SafetensorsFile::Open(flags.golden));
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<GoldenList> lists, FindLists(*golden));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model_files,
                           OpenStoredModel(flags.pipeline.model));
  LocalPipeline::Options options = flags.pipeline.Options();
  options.prefill_chunk = flags.chunk;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<LocalPipeline> pipeline,
                           LocalPipeline::Create(*model_files, options));
  bool all_within = true;
  for (const GoldenList& list : lists) {
    CARAVAN_ASSIGN_OR_RETURN(const double error,
                             CompareList(*golden, list, model_files->config(), pipeline->driver()));
    const bool within = error <= flags.tolerance;
    all_within = all_within && within;
    std::printf("%-12s %6lld tokens  relative error %.3e  %s\n", list.ids_name.c_str(),
                static_cast<long long>(golden->Find(list.ids_name)->shape[0]), error,
                within ? "ok" : "ABOVE TOLERANCE");
    std::fflush(stdout);
  }
  std::printf("%s: %zu lists, tolerance %.1e\n", all_within ? "equal" : "different", lists.size(),
              flags.tolerance);
  return all_within;
}

}  // namespace

void AddVerifyCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("verify", "Compare a model's logits with a reference's, list by list");
  const auto flags = std::make_shared<VerifyFlags>();
  AddConfigOption(*command);
  flags->pipeline.AddTo(*command);
  CLI::Option* const ram = command->get_option("--ram");
  ram->description(ram->get_description() +
                   "; the logits of a list and its reference's come on top of that");
  command
      ->add_option("--golden", flags->golden,
                   "Safetensors file with ids_i [tokens] I32 and logits_i [tokens, vocab] F32, or "
                   "ids and last_logits")
      ->required();
  command->add_option("--chunk", flags->chunk, "Prefill in chunks of so many tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--tolerance", flags->tolerance, "Largest ||a-b||/||b|| that passes")
      ->check(NotNegative())
      ->capture_default_str();
  command->callback([flags, &body] {
    body = [flags] {
      const absl::StatusOr<bool> equal = Verify(*flags);
      if (!equal.ok()) return ReportStatus(equal.status());
      return *equal ? kExitOk : kExitFailed;
    };
  });
}

}  // namespace caravan
