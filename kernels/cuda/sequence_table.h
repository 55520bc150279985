#ifndef CARAVAN_KERNELS_CUDA_SEQUENCE_TABLE_H_
#define CARAVAN_KERNELS_CUDA_SEQUENCE_TABLE_H_

// The sequences of a batch as kernels read them: a row of the batch and its position for each, and
// the pointers to all cache blocks. Memory for them is taken once. A batch goes through many
// layers, and of a cache's block one layer lies at the same distance from another whichever block
// it is: so what was copied for one of them serves all. Used by one thread at a time.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"

namespace caravan {

/// Where a row of a batch stands.
struct RowPlace {
  int32_t row;
  int32_t position;
  int32_t first_block;  // of its sequence, in the table's blocks
};

/// In device memory; valid until the table's next Upload.
struct SequenceRowsView {
  const RowPlace* places = nullptr;  // [num_rows], sequence after sequence
  int64_t num_rows = 0;
  std::byte* const* blocks = nullptr;
  int64_t block_offset = 0;  // bytes from each of these pointers to the block that is meant
};

class SequenceTable {
 public:
  /// Errors: ResourceExhausted - no memory on the device.
  static absl::StatusOr<SequenceTable> Create(const CudaDevice& device, int64_t max_rows,
                                              int64_t max_kv_blocks);

  /// Queues the copy, where these very rows and blocks are not there yet: no block is at an offset
  /// then. `sequences` and what they point to lie in host memory (blocks in the device's) and may
  /// go when this returns. REQUIRES: no more rows and blocks than Create was told; positions below
  /// 2^31. Errors: Internal.
  absl::StatusOr<SequenceRowsView> Upload(const CudaStream& stream,
                                          absl::Span<const SequenceRows> sequences);

  /// nullopt: what was uploaded last does not serve for these.
  std::optional<SequenceRowsView> Find(absl::Span<const SequenceRows> sequences) const;

  /// What was uploaded last, on the host.
  absl::Span<const RowPlace> places() const { return places_; }

 private:
  SequenceTable() = default;

  SequenceRowsView ViewAt(int64_t block_offset) const;

  std::vector<RowPlace> places_;
  std::vector<std::byte*> blocks_;
  int64_t max_rows_ = 0;
  int64_t max_kv_blocks_ = 0;
  DeviceBuffer device_places_;
  DeviceBuffer device_blocks_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_SEQUENCE_TABLE_H_
