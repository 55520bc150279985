#include "model/stored_model.h"

#include <utility>

#include "base/file.h"
#include "base/status_macros.h"
#include "model/checkpoint.h"
#include "model/gguf/gguf_checkpoint.h"
#include "model/pack/packed_model.h"

namespace caravan {
absl::Status StoredModel::SetConfig(std::string path, std::string config_json,
                                    absl::string_view origin) {
  path_ = std::move(path);
  config_json_ = std::move(config_json);
  CARAVAN_ASSIGN_OR_RETURN(config_, ParseModelConfig(config_json_, origin));
  return absl::OkStatus();
}

absl::Status StoredModel::ReadConfig(const std::string& directory) {
  const std::string path = JoinPath(directory, "config.json");
  CARAVAN_ASSIGN_OR_RETURN(std::string config_json, ReadFile(path, kMaxConfigBytes));
  return SetConfig(directory, std::move(config_json), path);
}

absl::StatusOr<TextFile> StoredModel::ReadText(absl::string_view name) const {
  return ReadTextFile(path_, name);
}

absl::StatusOr<std::unique_ptr<StoredModel>> OpenStoredModel(const std::string& path) {
  if (IsGgufPath(path)) return GgufCheckpoint::Open(path);
  if (PackedModel::IsAt(path)) return PackedModel::Open(path);
  return Checkpoint::Open(path);
}

}  // namespace caravan
