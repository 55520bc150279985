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
#include "kernels/matrix.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {

struct TensorInfo {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;                     // slowest dimension first; all positive
  MatrixLayout layout = MatrixLayout::kRowMajor;  // another: shape is [rows, cols]

  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
  }
  int64_t num_bytes() const {
    return layout == MatrixLayout::kTiled16 ? TiledBytes(dtype, shape[0], shape[1])
                                            : DTypeBytes(dtype, num_elements());
  }
};

struct ExpertFile;  // model/pack/pack_manifest.h

/// Thread-safe.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  /// Null when there is no such tensor. The answer lives as long as the source.
  virtual const TensorInfo* Find(absl::string_view name) const = 0;

  /// Copies bytes [offset, offset + out.size()) of the tensor, which lies in its layout,
  /// little-endian.
  /// REQUIRES: Find(name) is not null, and its num_bytes() cover them.
  /// Errors: DataLoss - the bytes could not be read; Unavailable - the other side is gone.
  virtual absl::Status ReadPart(absl::string_view name, int64_t offset,
                                absl::Span<std::byte> out) const = 0;

  /// A hint that these bytes are read soon. Does not wait for them. REQUIRES: as ReadPart.
  virtual void Prefetch(absl::string_view /*name*/, int64_t /*offset*/, int64_t /*size*/) const {}

  /// Where a layer's routed experts lie on this machine's disk, each as one run of bytes. Null: it
  /// has none, or they do not lie so. The answer lives as long as the source.
  virtual const ExpertFile* FindExperts(int /*layer*/) const { return nullptr; }

  /// The whole tensor. REQUIRES: out.size() == Find(name)->num_bytes(). Errors: as ReadPart.
  absl::Status Read(absl::string_view name, absl::Span<std::byte> out) const {
    return ReadPart(name, 0, out);
  }
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TENSOR_SOURCE_H_
