#include "model/checkpoint.h"

#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"
#include "model/fingerprint.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleFileName[] = "model.safetensors";

/// A plain file name: an index must not lead out of its directory.
bool IsShardName(const std::string& name) {
  return absl::EndsWith(name, ".safetensors") &&
         name.find_first_of(std::string("/\0", 2)) == std::string::npos;
}

/// Which shard each tensor is in, as the index says.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const json index, ReadJsonFile(path));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(index, path));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields weight_map, fields.Object("weight_map"));
  std::map<std::string, std::string> shard_names;
  for (const auto& [tensor, value] : index["weight_map"].items()) {
    CARAVAN_ASSIGN_OR_RETURN(std::string shard, weight_map.String(tensor));
    if (!IsShardName(shard)) {
      return weight_map.Error(tensor, absl::StrCat("is \"", shard,
                                                   "\", not the name of a .safetensors file in "
                                                   "the same directory"));
    }
    shard_names[tensor] = std::move(shard);
  }
  if (shard_names.empty()) return fields.Error("weight_map", "names no tensor");
  return shard_names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  CARAVAN_RETURN_IF_ERROR(checkpoint->ReadConfig(directory));

  std::map<std::string, const SafetensorsFile*> shards;  // by name
  const auto open_shard = [&](const std::string& name) -> absl::Status {
    const SafetensorsFile*& shard = shards[name];
    if (shard != nullptr) return absl::OkStatus();
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file,
                             SafetensorsFile::Open(JoinPath(directory, name)));
    shard = file.get();
    checkpoint->shards_.push_back(std::move(file));
    return absl::OkStatus();
  };

  const std::string index_path = JoinPath(directory, kIndexName);
  std::map<std::string, std::string> shard_names;
  if (FileExists(index_path)) {
    CARAVAN_ASSIGN_OR_RETURN(shard_names, ReadIndex(index_path));
  } else if (FileExists(JoinPath(directory, kSingleFileName))) {
    CARAVAN_RETURN_IF_ERROR(open_shard(kSingleFileName));
    for (std::string& tensor : shards[kSingleFileName]->TensorNames()) {
      shard_names[std::move(tensor)] = kSingleFileName;
    }
  } else {
    return absl::NotFoundError(
        absl::StrCat(directory, ": holds neither ", kIndexName, " nor ", kSingleFileName));
  }

  Fingerprint fingerprint;
  fingerprint.AddText(checkpoint->config_json());
  for (const auto& [tensor, shard_name] : shard_names) {
    // A missing shard is the index's fault too; a damaged one says what of it is wrong.
    const absl::Status opened = open_shard(shard_name);
    if (absl::IsNotFound(opened)) return Annotate(opened, absl::StrCat("tensor ", tensor));
    CARAVAN_RETURN_IF_ERROR(opened);
    const SafetensorsFile* const shard = shards[shard_name];
    const TensorInfo* const info = shard->Find(tensor);
    if (info == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": tensor ", tensor, " is said to be in ", shard_name, ", which lacks it"));
    }
    checkpoint->shard_of_[tensor] = shard;
    fingerprint.AddTensor(tensor, *info);
    fingerprint.AddText(shard_name);
    fingerprint.AddInt(shard->Offset(tensor));
  }
  checkpoint->set_fingerprint(fingerprint.value());
  return checkpoint;
}

std::vector<std::string> Checkpoint::TensorNames() const { return SortedKeys(shard_of_); }

const TensorInfo* Checkpoint::Find(absl::string_view name) const {
  const auto it = shard_of_.find(name);
  return it == shard_of_.end() ? nullptr : it->second->Find(name);
}

absl::Status Checkpoint::ReadPart(absl::string_view name, int64_t offset,
                                  absl::Span<std::byte> out) const {
  const auto it = shard_of_.find(name);
  CARAVAN_CHECK(it != shard_of_.end());
  return it->second->ReadPart(name, offset, out);
}

void Checkpoint::Prefetch(absl::string_view name, int64_t offset, int64_t size) const {
  const auto it = shard_of_.find(name);
  CARAVAN_CHECK(it != shard_of_.end());
  it->second->Prefetch(name, offset, size);
}

}  // namespace caravan
