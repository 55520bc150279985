#ifndef CARAVAN_MODEL_STORED_MODEL_H_
#define CARAVAN_MODEL_STORED_MODEL_H_

// A model, in whichever form: its config, its tensors and the files of its text side.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/tensor_source.h"
#include "model/text_files.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class StoredModel : public TensorSource {
 public:
  /// A config.json may have at most.
  static constexpr int64_t kMaxConfigBytes = int64_t{1} << 24;

  /// What it was opened by: a directory, or a GGUF file.
  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const std::string& config_json() const { return config_json_; }

  /// The same on every machine that holds the same files; each form says how far that is known.
  uint64_t fingerprint() const { return fingerprint_; }

  /// Whether it is a pack of some layers alone, which no pipeline runs.
  virtual bool is_partial() const { return false; }

  /// In ascending order.
  virtual std::vector<std::string> TensorNames() const = 0;

  /// As ReadTextFile(path(), name).
  virtual absl::StatusOr<TextFile> ReadText(absl::string_view name) const;

 protected:
  /// `origin` names the text in errors, which are ParseModelConfig's.
  absl::Status SetConfig(std::string path, std::string config_json, absl::string_view origin);
  /// SetConfig of directory/config.json. Errors: also NotFound - it is missing.
  absl::Status ReadConfig(const std::string& directory);
  void set_fingerprint(uint64_t fingerprint) { fingerprint_ = fingerprint; }

 private:
  std::string path_;
  std::string config_json_;
  ModelConfig config_;
  uint64_t fingerprint_ = 0;
};

/// Opens what `path` is: a .gguf file (GgufCheckpoint), or a directory of a packed model
/// (PackedModel) or of a Hugging Face checkpoint (Checkpoint). Errors: as theirs.
absl::StatusOr<std::unique_ptr<StoredModel>> OpenStoredModel(const std::string& path);

}  // namespace caravan

#endif  // CARAVAN_MODEL_STORED_MODEL_H_
