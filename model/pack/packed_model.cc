#include "model/pack/packed_model.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"
#include "model/fingerprint.h"
#include "model/pack/file_hash.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

constexpr size_t kPieceBytes = size_t{4} << 20;

/// The manifest of the pack there. Errors: as ReadFile.
absl::StatusOr<std::string> ReadManifest(const std::string& directory) {
  return ReadFile(JoinPath(directory, kPackManifestName), kMaxPackManifestBytes);
}

/// Errors: InvalidArgument - `directory` does not hold the pack of this manifest.
absl::Status CheckMirror(const std::string& directory, absl::string_view manifest) {
  const absl::StatusOr<std::string> own = ReadManifest(directory);
  if (own.ok() && *own == manifest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      own.ok()
          ? absl::StrCat(JoinPath(directory, kPackManifestName),
                         ": a mirror must hold the same pack, and this is another one")
          : absl::StrCat(directory,
                         ": a mirror must hold the pack's manifest: ", own.status().message()));
}

/// The copies of a file, in the order of the directories. Errors: as PackedModel::Open.
absl::StatusOr<std::vector<std::unique_ptr<ReadableFile>>> OpenCopies(
    const PackedFile& file, absl::Span<const std::string> directories) {
  std::vector<std::unique_ptr<ReadableFile>> copies;
  absl::Status missing;
  for (const std::string& directory : directories) {
    absl::StatusOr<std::unique_ptr<ReadableFile>> opened =
        ReadableFile::Open(JoinPath(directory, file.name));
    if (absl::IsNotFound(opened.status())) {
      missing.Update(opened.status());
      continue;
    }
    CARAVAN_RETURN_IF_ERROR(opened.status());
    if ((*opened)->bytes() != file.bytes) {
      return absl::InvalidArgumentError(absl::StrCat((*opened)->path(), ": has ",
                                                     (*opened)->bytes(), " bytes, but ",
                                                     kPackManifestName, " says ", file.bytes));
    }
    copies.push_back(*std::move(opened));
  }
  if (copies.empty()) return missing;
  return copies;
}

absl::Status Compare(const std::string& what, const std::string& hash, const std::string& packed) {
  if (hash == packed) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(what, ": hash ", hash, ", but it was packed with ", packed));
}

}  // namespace

bool PackedModel::IsAt(const std::string& directory) {
  return FileExists(JoinPath(directory, kPackManifestName)) ||
         FileExists(JoinPath(directory, kUnfinishedPackName));
}

absl::StatusOr<std::unique_ptr<PackedModel>> PackedModel::Open(
    const std::string& directory, absl::Span<const std::string> mirrors, Files which) {
  const std::string path = JoinPath(directory, kPackManifestName);
  if (!FileExists(path) && FileExists(JoinPath(directory, kUnfinishedPackName))) {
    return absl::FailedPreconditionError(absl::StrCat(
        directory, ": packing was not finished; the same `caravan pack` goes on with it"));
  }
  auto model = std::unique_ptr<PackedModel>(new PackedModel());
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadManifest(directory));
  CARAVAN_ASSIGN_OR_RETURN(model->manifest_, ParsePackManifest(text, path));
  if (model->manifest_.files.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": names no files"));
  }
  CARAVAN_RETURN_IF_ERROR(model->ReadConfig(directory));
  std::vector<std::string> directories = {directory};
  directories.insert(directories.end(), mirrors.begin(), mirrors.end());
  CARAVAN_RETURN_IF_ERROR(CheckMirrors(directory, mirrors));
  std::vector<PackedFile> here;
  for (PackedFile& file : model->manifest_.files) {
    absl::StatusOr<std::vector<std::unique_ptr<ReadableFile>>> opened =
        OpenCopies(file, directories);
    if (which == Files::kPresent && absl::IsNotFound(opened.status())) continue;
    CARAVAN_ASSIGN_OR_RETURN(std::vector<std::unique_ptr<ReadableFile>> copies, std::move(opened));
    for (PackedTensor& tensor : AllTensors(file)) {
      const bool is_new = model->places_
                              .try_emplace(tensor.name, Place{std::move(tensor.info),
                                                              model->files_.size(), tensor.offset})
                              .second;
      if (!is_new) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", tensor.name, " is there twice"));
      }
    }
    if (file.experts.has_value()) {
      ExpertFile& experts = model->expert_files_[file.experts->prefix];
      experts = {copies[0]->path(), *file.experts};
      for (size_t i = 1; i < copies.size(); ++i) experts.mirrors.push_back(copies[i]->path());
    }
    model->files_.push_back(std::move(copies[0]));
    here.push_back(std::move(file));
  }
  model->manifest_.files = std::move(here);
  model->set_fingerprint(FingerprintOf(model->config_json(), text));
  return model;
}

uint64_t PackedModel::FingerprintOf(absl::string_view config_json, absl::string_view manifest) {
  Fingerprint fingerprint;
  fingerprint.AddText(config_json);
  fingerprint.AddText(manifest);
  return fingerprint.value();
}

absl::Status PackedModel::CheckMirrors(const std::string& directory,
                                       absl::Span<const std::string> mirrors) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string manifest, ReadManifest(directory));
  std::vector<std::string> directories = {directory};
  for (const std::string& mirror : mirrors) {
    CARAVAN_RETURN_IF_ERROR(CheckMirror(mirror, manifest));
    for (const std::string& other : directories) {
      std::error_code ignored;
      if (!std::filesystem::equivalent(mirror, other, ignored)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(mirror,
                       ": a mirror must be another directory than the model's and those of "
                       "other mirrors, and this is ",
                       other));
    }
    directories.push_back(mirror);
  }
  return absl::OkStatus();
}

absl::Status PackedModel::CheckHashes(
    absl::FunctionRef<bool(int64_t done, int64_t total)> progress) const {
  int64_t total = 0;
  for (const PackedFile& file : manifest_.files) total += file.bytes;
  int64_t done = 0;
  std::vector<std::byte> piece(kPieceBytes);
  for (size_t i = 0; i < files_.size(); ++i) {
    const PackedFile& file = manifest_.files[i];
    FileHash hash;
    int64_t offset = 0;
    const auto read_to = [&](int64_t end, FileHash* part) -> absl::Status {
      while (offset < end) {
        if (!progress(done, total)) return absl::CancelledError("checking was stopped");
        const auto size = std::min<int64_t>(kPieceBytes, end - offset);
        const auto bytes = absl::MakeSpan(piece).first(static_cast<size_t>(size));
        CARAVAN_RETURN_IF_ERROR(files_[i]->Read(offset, bytes));
        hash.Add(bytes);
        if (part != nullptr) part->Add(bytes);
        offset += size;
        done += size;
      }
      return absl::OkStatus();
    };
    if (file.experts.has_value()) {
      const PackedExperts& experts = *file.experts;
      CARAVAN_RETURN_IF_ERROR(read_to(experts.offset, nullptr));
      for (int64_t e = 0; e < experts.count; ++e) {
        FileHash part;
        CARAVAN_RETURN_IF_ERROR(read_to(offset + experts.stride, &part));
        CARAVAN_RETURN_IF_ERROR(Compare(absl::StrCat(files_[i]->path(), ", expert ", e),
                                        part.Digest(), experts.hashes[static_cast<size_t>(e)]));
      }
    }
    CARAVAN_RETURN_IF_ERROR(read_to(file.bytes, nullptr));
    CARAVAN_RETURN_IF_ERROR(Compare(files_[i]->path(), hash.Digest(), file.hash));
  }
  for (const PackedText& text : manifest_.texts) {
    const std::string text_path = JoinPath(path(), text.name);
    const absl::StatusOr<TextFile> file = ReadText(text.name);
    if (absl::IsNotFound(file.status())) {
      return absl::DataLossError(absl::StrCat(text_path, ": is missing, but was packed"));
    }
    CARAVAN_RETURN_IF_ERROR(file.status());
    const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(file->text.data()),
                                           file->text.size());
    CARAVAN_RETURN_IF_ERROR(Compare(text_path, HashOf(bytes), text.hash));
  }
  progress(total, total);
  return absl::OkStatus();
}

std::vector<std::string> PackedModel::TensorNames() const { return SortedKeys(places_); }

const TensorInfo* PackedModel::Find(absl::string_view name) const {
  const auto it = places_.find(name);
  return it == places_.end() ? nullptr : &it->second.info;
}

absl::Status PackedModel::ReadPart(absl::string_view name, int64_t offset,
                                   absl::Span<std::byte> out) const {
  const auto it = places_.find(name);
  CARAVAN_CHECK(it != places_.end());
  const Place& place = it->second;
  CARAVAN_CHECK(offset >= 0 && offset + static_cast<int64_t>(out.size()) <= place.info.num_bytes());
  return files_[place.file]->Read(place.offset + offset, out);
}

bool PackedModel::is_partial() const {
  const auto lacks = [this](const std::vector<TensorSpec>& specs) {
    return Find(specs.front().name) == nullptr;
  };
  if (lacks(EmbeddingTensors(config())) || lacks(HeadTensors(config()))) return true;
  for (int layer = 0; layer < config().num_hidden_layers; ++layer) {
    if (lacks(LayerTensors(config(), layer))) return true;
  }
  return false;
}

const ExpertFile* PackedModel::FindExperts(int layer) const {
  const auto it = expert_files_.find(absl::StrCat("model.layers.", layer, ".mlp.experts."));
  return it == expert_files_.end() ? nullptr : &it->second;
}

}  // namespace caravan
