#ifndef CARAVAN_KERNELS_KV_ROWS_H_
#define CARAVAN_KERNELS_KV_ROWS_H_

// Rows of the compressed cache (MlaShape::kv_width values a token and layer) in the formats that
// they may be stored in: F32; F16; Q8_0 (kernels/quant/blocks.h), whose blocks of 32 run along the
// row, so that none spans the latent and the rope part. DequantizeRow reads them. Pure functions.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "base/dtype.h"
#include "kernels/backend.h"

namespace caravan {

inline constexpr DType kKvDTypes[] = {DType::kF32, DType::kF16, DType::kQ8_0};
bool IsKvDType(DType dtype);

/// Whether a cache of this shape may have this format.
/// Errors: InvalidArgument - it is not one of kKvDTypes, or its blocks do not fill kv_lora_rank or
///         qk_rope_head_dim (says which).
absl::Status CheckKvDType(const MlaShape& shape, DType dtype);

/// Bytes of so many values, in whole blocks.
int64_t KvBytes(DType dtype, int64_t num_values);

/// Where `position` of the sequence lies: DTypeBytes(kv.dtype, kv_width) bytes.
inline std::byte* KvRow(const MlaShape& shape, const KvLayout& kv, const SequenceRows& sequence,
                        int64_t position) {
  return sequence.kv_blocks[position / kv.block_tokens] +
         position % kv.block_tokens * DTypeBytes(kv.dtype, shape.kv_width());
}

/// Stores values [n] as DTypeBytes(dtype, n) bytes. F16 rounds to the nearest and saturates at
/// 65504, so that one large value does not make NaNs of a whole sequence. Q8_0 is QuantizeRow's; a
/// row with a value that is not finite becomes NaN throughout.
/// REQUIRES: IsKvDType(dtype); n is a multiple of BlockOf(dtype).values.
void EncodeKvRow(DType dtype, const float* values, int64_t n, std::byte* row);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_KV_ROWS_H_
