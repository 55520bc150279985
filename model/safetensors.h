#ifndef CARAVAN_MODEL_SAFETENSORS_H_
#define CARAVAN_MODEL_SAFETENSORS_H_

// One .safetensors file, mapped. Format (huggingface/safetensors, "Format" in its README):
//   u64 little-endian N | N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin,
//   end]}} | data; offsets count from the data's start.

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "model/mapped_tensors.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class SafetensorsFile : public MappedTensors {
 public:
  /// Errors: NotFound - no such file; InvalidArgument - truncated; a header that is not JSON,
  ///         larger than the file or than 100 MB; a tensor with an unknown dtype, a size that
  ///         disagrees with its shape, overflows, overlaps another's, leaves a gap or runs past the
  ///         end.
  ///         Each names the file and the tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  /// The strings under __metadata__: free text about the file.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  explicit SafetensorsFile(std::unique_ptr<MappedFile> file) : MappedTensors(std::move(file)) {}

  std::map<std::string, std::string> metadata_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_SAFETENSORS_H_
