#include "worker/files/model_fetch.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cluster/pipeline_plan.h"
#include "model/tensor_table.h"
#include "worker/files/file_fetch.h"

namespace caravan {
namespace {

constexpr char kConfigName[] = "config.json";

absl::Status WriteFile(const std::string& path, absl::string_view text) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(text));
  return file->Commit();
}

bool IsOfModel(const v1::ModelReference& model, absl::string_view manifest) {
  return PackedModel::FingerprintOf(model.config_json(), manifest) == model.fingerprint();
}

/// The coordinator's error, which says nothing against this worker: it may be better in a moment.
absl::Status OfCoordinator(const absl::Status& error) {
  return absl::IsCancelled(error) ? error
                                  : absl::UnavailableError(absl::StrCat(
                                        "the coordinator's manifest: ", error.message()));
}

absl::StatusOr<std::string> FetchManifest(FileSource& coordinator, const std::stop_token& stop) {
  const absl::StatusOr<std::vector<OfferedFile>> offered = coordinator.List(stop);
  if (!offered.ok()) return OfCoordinator(offered.status());
  const auto manifest = std::find_if(offered->begin(), offered->end(), [](const OfferedFile& file) {
    return file.name == kPackManifestName;
  });
  if (manifest == offered->end()) {
    return absl::UnimplementedError(
        "only packed models are kept, and the coordinator's is none (caravan pack makes one)");
  }
  if (manifest->bytes < 1 || manifest->bytes > kMaxPackManifestBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the coordinator's manifest has ", manifest->bytes, " bytes"));
  }
  std::string text;
  const auto keep = [&text](absl::Span<const std::byte> bytes) {
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return absl::OkStatus();
  };
  const absl::Status read = ReadAll(coordinator, kPackManifestName, 0, manifest->bytes, keep, stop);
  if (!read.ok()) return OfCoordinator(read);
  return text;
}

/// The manifest in the cache, after it was put there if need be. It is what says what all other
/// bytes must be, and the order's fingerprint says what it must be itself.
absl::StatusOr<PackManifest> GetManifest(const v1::ModelReference& model,
                                         const std::string& directory, FileSource& coordinator,
                                         const std::stop_token& stop) {
  const std::string path = JoinPath(directory, kPackManifestName);
  absl::StatusOr<std::string> text = ReadFile(path, kMaxPackManifestBytes);
  const std::string config = JoinPath(directory, kConfigName);
  const absl::StatusOr<std::string> cached_config = ReadFile(config, StoredModel::kMaxConfigBytes);
  const bool is_cached = text.ok() && IsOfModel(model, *text) && cached_config.ok() &&
                         *cached_config == model.config_json();
  if (!is_cached) {
    text = FetchManifest(coordinator, stop);
    if (!text.ok()) return text.status();
    if (!IsOfModel(model, *text)) {
      return absl::AbortedError("the coordinator's manifest is not that of the model in its order");
    }
    CARAVAN_RETURN_IF_ERROR(WriteFile(config, model.config_json()));
    CARAVAN_RETURN_IF_ERROR(WriteFile(path, *text));
  }
  CARAVAN_ASSIGN_OR_RETURN(PackManifest manifest, ParsePackManifest(*text, path));
  for (const PackedFile& file : manifest.files) {
    // By this the cache knows its files from others.
    if (absl::EndsWith(file.name, ".bin")) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, ": a file ", file.name, ", not *.bin"));
  }
  return manifest;
}

/// What loading the stage from these files reads, about.
int64_t BytesToLoad(const v1::LoadStage& order, const std::vector<PackedFile>& files) {
  int64_t always = 0;
  int64_t experts = 0;
  for (const PackedFile& file : files) {
    const int64_t of_experts =
        file.experts.has_value() ? file.experts->count * file.experts->stride : 0;
    always += file.bytes - of_experts;
    experts += of_experts;
  }
  if (order.expert_budget_bytes() > 0) {
    experts = std::min(experts, static_cast<int64_t>(order.expert_budget_bytes()));
  }
  return always + experts;
}

void LogFetched(const std::string& directory, const FileFetchResult& result, absl::Duration took) {
  std::vector<std::string> from;
  for (const auto& [source, bytes] : result.bytes_from) {
    from.push_back(absl::StrCat(source, ": ", FormatByteSize(bytes)));
  }
  LogInfo("files_fetched", {{"directory", directory},
                            {"files", result.files},
                            {"bytes", result.bytes},
                            {"kept_bytes", result.kept_bytes},
                            {"seconds", absl::StrFormat("%.1f", absl::ToDoubleSeconds(took))},
                            {"from", absl::StrJoin(from, ", ")}});
}

}  // namespace

std::vector<PackedFile> FilesOfStage(const PackManifest& manifest, const ModelConfig& config,
                                     const StageSpec& stage) {
  std::set<std::string> wanted;
  for (TensorSpec& tensor : StageTensors(config, stage)) wanted.insert(std::move(tensor.name));
  std::vector<PackedFile> files;
  for (const PackedFile& file : manifest.files) {
    const std::vector<PackedTensor> tensors = AllTensors(file);
    const bool is_wanted =
        std::any_of(tensors.begin(), tensors.end(),
                    [&wanted](const PackedTensor& tensor) { return wanted.contains(tensor.name); });
    if (is_wanted) files.push_back(file);
  }
  return files;
}

absl::StatusOr<CachedModel> FetchModel(const v1::LoadStage& order, ModelCache& cache,
                                       const std::vector<FileSource*>& sources,
                                       const FetchProgress& progress, const std::stop_token& stop) {
  const absl::Duration begin = SteadyClock().Now();
  const v1::ModelReference& model = order.model();
  CARAVAN_ASSIGN_OR_RETURN(const ModelConfig config,
                           ParseModelConfig(model.config_json(), "the coordinator's config.json"));
  CARAVAN_ASSIGN_OR_RETURN(const StageSpec stage, StageFromProto(order.stage()));
  const std::string directory = cache.DirectoryOf(model.fingerprint());
  CARAVAN_RETURN_IF_ERROR(cache.MakeDirectory(model.fingerprint()));
  CARAVAN_ASSIGN_OR_RETURN(const PackManifest manifest,
                           GetManifest(model, directory, *sources.front(), stop));
  const std::vector<PackedFile> files = FilesOfStage(manifest, config, stage);
  CachedModel cached;
  CARAVAN_ASSIGN_OR_RETURN(cached.lease, cache.Take(model.fingerprint(), files));
  const int64_t to_load = BytesToLoad(order, files);
  FileFetchOptions options;
  options.progress = [&](int64_t done, int64_t total) { return progress(done, total + to_load); };
  options.stop = stop;
  CARAVAN_ASSIGN_OR_RETURN(const FileFetchResult fetched,
                           FetchFiles(directory, files, sources, options));
  LogFetched(directory, fetched, SteadyClock().Now() - begin);
  CARAVAN_ASSIGN_OR_RETURN(
      cached.model, PackedModel::Open(directory, /*mirrors=*/{}, PackedModel::Files::kPresent));
  return cached;
}

}  // namespace caravan
