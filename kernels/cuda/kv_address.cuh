#ifndef CARAVAN_KERNELS_CUDA_KV_ADDRESS_CUH_
#define CARAVAN_KERNELS_CUDA_KV_ADDRESS_CUH_

// Where cached rows lie, for kernels (KvRow of kernels/kv_rows.h is the host's).

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/sequence_table.h"

namespace caravan {

/// Tokens of a block and bytes of a row, and where in a block they begin.
struct KvGeometry {
  int64_t block_tokens;
  int64_t row_bytes;
  int64_t block_offset;  // SequenceRowsView
};

__device__ inline std::byte* KvRowAt(std::byte* const* blocks, const KvGeometry& kv,
                                     const RowPlace& place, int position) {
  const int tokens = static_cast<int>(kv.block_tokens);
  return blocks[place.first_block + position / tokens] + kv.block_offset +
         position % tokens * kv.row_bytes;
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_KV_ADDRESS_CUH_
