#ifndef CARAVAN_MODEL_SAFETENSORS_H_
#define CARAVAN_MODEL_SAFETENSORS_H_

// One .safetensors file, mapped. Format (huggingface/safetensors, "Format" in its README):
//   u64 little-endian N | N bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin,
//   end]}} | data; offsets count from the data's start.

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "model/tensor_source.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class SafetensorsFile : public TensorSource {
 public:
  /// Errors: NotFound - no such file; InvalidArgument - truncated; a header that is not JSON,
  /// larger
  ///         than the file or than 100 MB; a tensor with an unknown dtype, a size that disagrees
  ///         with its shape, overflows, overlaps another's, leaves a gap or runs past the end. Each
  ///         names the file and the tensor.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }

  /// In ascending order.
  std::vector<std::string> TensorNames() const;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Lets go of the pages that it reads.
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;

  /// The tensor's mapped bytes; not aligned. REQUIRES: Find(name) is not null.
  absl::Span<const std::byte> Bytes(absl::string_view name) const;

  /// Where the tensor's bytes begin in the file. REQUIRES: Find(name) is not null.
  int64_t Offset(absl::string_view name) const;

 private:
  struct Entry {
    TensorInfo info;
    int64_t offset = 0;  // from the file's start
  };
  explicit SafetensorsFile(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}

  const std::unique_ptr<MappedFile> file_;
  absl::flat_hash_map<std::string, Entry> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_SAFETENSORS_H_
