#ifndef CARAVAN_MODEL_MODEL_DIRECTORY_H_
#define CARAVAN_MODEL_MODEL_DIRECTORY_H_

// A model on this machine's disk, in whichever form: its config and its tensors.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/tensor_source.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class ModelDirectory : public TensorSource {
 public:
  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::string& config_json() const { return config_json_; }

  /// The same on every machine that holds the same files; Checkpoint and PackedModel say how far
  /// that is known.
  uint64_t fingerprint() const { return fingerprint_; }

  /// In ascending order.
  virtual std::vector<std::string> TensorNames() const = 0;

 protected:
  /// Reads directory/config.json. Errors: NotFound - it is missing; InvalidArgument - as
  /// ParseModelConfig.
  absl::Status ReadConfig(const std::string& directory);
  void set_fingerprint(uint64_t fingerprint) { fingerprint_ = fingerprint; }

 private:
  std::string directory_;
  std::string config_json_;
  ModelConfig config_;
  uint64_t fingerprint_ = 0;
};

/// Opens a packed model (PackedModel) or a Hugging Face checkpoint (Checkpoint), whichever lies in
/// `directory`. Errors: as theirs.
absl::StatusOr<std::unique_ptr<ModelDirectory>> OpenModelDirectory(const std::string& directory);

}  // namespace caravan

#endif  // CARAVAN_MODEL_MODEL_DIRECTORY_H_
