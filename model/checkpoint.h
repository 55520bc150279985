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
#include "model/safetensors.h"
#include "model/stored_model.h"

namespace caravan {

/// The fingerprint is of config.json's bytes and of every tensor's name, type, shape and place: the
/// same on every machine that holds the same layout. It says nothing about the weights' values.
class Checkpoint : public StoredModel {
 public:
  /// Reads config and headers, no weights. Shards that the index names must be there, well formed,
  /// and hold what the index says they hold.
  /// Errors: NotFound - a file is missing; InvalidArgument - a file is malformed. Each names the
  ///         file and the field or tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  std::vector<std::string> TensorNames() const override;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Maps no page of the file in.
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  void Prefetch(absl::string_view name, int64_t offset, int64_t size) const override;

 private:
  Checkpoint() = default;

  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  absl::flat_hash_map<std::string, const SafetensorsFile*> shard_of_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_CHECKPOINT_H_
