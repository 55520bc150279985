#ifndef CARAVAN_MODEL_CHECKPOINT_H_
#define CARAVAN_MODEL_CHECKPOINT_H_

// A model directory in Hugging Face's layout: config.json, model.safetensors.index.json with its
// shards (or one model.safetensors).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/safetensors.h"
#include "model/tensor_source.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class Checkpoint : public TensorSource {
 public:
  /// Reads config and headers, no weights. Shards that the index names must be there, well formed,
  /// and hold what the index says they hold.
  /// Errors: NotFound - a file is missing; InvalidArgument - a file is malformed. Each names the
  /// file
  ///         and the field or tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::string& config_json() const { return config_json_; }

  /// Of config.json's bytes and of every tensor's name, type, shape and place: the same on every
  /// machine that holds the same layout. Says nothing about the weights' values.
  uint64_t fingerprint() const { return fingerprint_; }

  /// In ascending order.
  std::vector<std::string> TensorNames() const;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Pages of the file that were read do not stay mapped in.
  absl::Status Read(absl::string_view name, absl::Span<std::byte> out) const override;

  /// The shard that holds the tensor, for those who want its mapped bytes. Null: no such tensor.
  const SafetensorsFile* ShardOf(absl::string_view name) const;

 private:
  Checkpoint() = default;

  std::string directory_;
  std::string config_json_;
  ModelConfig config_;
  uint64_t fingerprint_ = 0;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  absl::flat_hash_map<std::string, const SafetensorsFile*> shard_of_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_CHECKPOINT_H_
