#include "model/model_directory.h"

#include "base/file.h"
#include "base/status_macros.h"
#include "model/checkpoint.h"
#include "model/pack/packed_model.h"

namespace caravan {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{1} << 24;

}  // namespace

absl::Status ModelDirectory::ReadConfig(const std::string& directory) {
  directory_ = directory;
  const std::string path = JoinPath(directory, "config.json");
  CARAVAN_ASSIGN_OR_RETURN(config_json_, ReadFile(path, kMaxConfigBytes));
  CARAVAN_ASSIGN_OR_RETURN(config_, ParseModelConfig(config_json_, path));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelDirectory>> OpenModelDirectory(const std::string& directory) {
  if (PackedModel::IsAt(directory)) return PackedModel::Open(directory);
  return Checkpoint::Open(directory);
}

}  // namespace caravan
