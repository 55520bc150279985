#ifndef CARAVAN_TESTS_KERNELS_ATTENTION_TESTING_H_
#define CARAVAN_TESTS_KERNELS_ATTENTION_TESTING_H_

// What the tests of attention share: a cache of blocks, and a random problem.

#include <vector>

#include "kernels/kv_rows.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {

/// Blocks of one sequence. Unwritten values are NaN, so that reading one shows.
class TestCache {
 public:
  TestCache(const MlaShape& shape, const KvLayout& kv, int64_t num_positions)
      : width_(shape.kv_width()), kv_(kv), row_bytes_(DTypeBytes(kv.dtype, width_)) {
    const int64_t num_blocks = (num_positions + kv.block_tokens - 1) / kv.block_tokens;
    // All ones is a NaN in F32, in F16 and as Q8_0's scale.
    blocks_.assign(num_blocks,
                   std::vector<std::byte>(kv.block_tokens * row_bytes_, std::byte{255}));
    for (std::vector<std::byte>& block : blocks_) pointers_.push_back(block.data());
  }

  const KvLayout& kv() const { return kv_; }
  void Write(int64_t position, const std::vector<float>& values) {
    EncodeKvRow(kv_.dtype, values.data(), width_, Bytes(position));
  }
  /// The exact values of a position.
  std::vector<float> Row(int64_t position) const {
    std::vector<float> values(width_);
    DequantizeRow(kv_.dtype, Bytes(position), width_, values.data());
    return values;
  }
  /// `num_rows` rows of a batch, from `first_row` on, at positions from `first_position` on.
  SequenceRows Rows(int64_t first_row, int64_t num_rows, int64_t first_position) const {
    return {first_row, num_rows, first_position, pointers_};
  }

 private:
  std::byte* Bytes(int64_t position) const {
    return pointers_[position / kv_.block_tokens] + position % kv_.block_tokens * row_bytes_;
  }

  int64_t width_;
  KvLayout kv_;
  int64_t row_bytes_;
  std::vector<std::vector<std::byte>> blocks_;
  std::vector<std::byte*> pointers_;
};

inline RopeTable TestRope(const std::vector<float>& inv_freq) { return {inv_freq, 1}; }

inline std::vector<float> TestInvFreq(int64_t rope_dim) {
  std::vector<float> inv_freq;
  for (int64_t i = 0; i < rope_dim / 2; ++i) {
    inv_freq.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / rope_dim)));
  }
  return inv_freq;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_ATTENTION_TESTING_H_
