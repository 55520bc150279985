#ifndef CARAVAN_MODEL_SYNTH_RANDOM_TENSOR_H_
#define CARAVAN_MODEL_SYNTH_RANDOM_TENSOR_H_

// Random weights straight in their stored format: the bits of any block follow from a key and the
// block's place alone, so they are the same on every machine, in any order and on any number of
// threads.
//
// The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014) used by counter: word i is the mix of key + (i + 1) *
// 0x9e3779b97f4a7c15. Floats are sums of four uniform 16-bit integers (the Irwin-Hall distribution,
// close to a normal one, at most 3.5 standard deviations from its mean), which are exact before the
// one rounding to the format. Block formats get uniform codes in sub-blocks of random scales, with
// one d for all: nobody quantizes, and the values' mean and variance are known.

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace caravan {

/// Immutable, thread-safe.
class RandomTensor {
 public:
  /// Values of this mean and standard deviation. That of block formats is met within 1%, as far as
  /// a binary16 can (from 1e-3 on).
  /// REQUIRES: dtype is not kI32; mean is 0 where dtype is a block format.
  RandomTensor(DType dtype, uint64_t key, float mean, float stddev);

  /// Writes blocks [first, first + count) of the tensor, counted row-major: BlockOf(dtype).bytes
  /// bytes each.
  void Fill(int64_t first, int64_t count, std::byte* out) const;

 private:
  DType dtype_;
  uint64_t key_;
  float mean_;
  float scale_ = 0;  // of a sum of four, see above
  uint16_t d_ = 0;   // of a block format
  uint16_t dmin_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_SYNTH_RANDOM_TENSOR_H_
