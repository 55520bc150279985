#ifndef CARAVAN_KERNELS_CPU_ACTIVATION_BLOCK_H_
#define CARAVAN_KERNELS_CPU_ACTIVATION_BLOCK_H_

// Activations as the integer kernels take them: blocks of 32 consecutive values of a row, each
// value code * scale with code in [-127, 127] and scale = max |x| / 127, so off by at most half a
// scale. One format for all weight types: the sums serve those with minima or stored offsets.

#include <cstdint>

namespace caravan {

inline constexpr int64_t kActivationBlock = 32;

/// One cache line. The sums are negated as they are only ever subtracted.
struct alignas(64) ActivationBlock {
  int8_t codes[kActivationBlock];
  float scale;                      // 0 if all values are 0; NaN if one of them is not finite
  float minus_scaled_sum;           // -(scale * sum of codes), the sum exact
  float minus_scaled_half_sums[2];  // of the first and the second 16
  int32_t minus_sum;                // -(sum of codes)
  int32_t minus_half_sums[2];
};
static_assert(sizeof(ActivationBlock) == 64);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_ACTIVATION_BLOCK_H_
