#ifndef CARAVAN_MODEL_TENSOR_SOURCE_H_
#define CARAVAN_MODEL_TENSOR_SOURCE_H_

// Where weights come from: a checkpoint on this machine's disk, or the coordinator's over the
// network.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/dtype.h"

namespace caravan {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // slowest dimension first; all positive

  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
  }
  int64_t num_bytes() const { return DTypeBytes(dtype, num_elements()); }
};

/// Thread-safe.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  /// Null when there is no such tensor. The answer lives as long as the source.
  virtual const TensorInfo* Find(absl::string_view name) const = 0;

  /// Copies the tensor's bytes, row-major and little-endian, into `out`.
  /// REQUIRES: Find(name) is not null and out.size() == its num_bytes().
  /// Errors: DataLoss - the bytes could not be read; Unavailable - the other side is gone.
  virtual absl::Status Read(absl::string_view name, absl::Span<std::byte> out) const = 0;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TENSOR_SOURCE_H_
