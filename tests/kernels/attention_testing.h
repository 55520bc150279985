#ifndef CARAVAN_TESTS_KERNELS_ATTENTION_TESTING_H_
#define CARAVAN_TESTS_KERNELS_ATTENTION_TESTING_H_

// What the tests of attention share: a cache of blocks, and a random problem.

#include <vector>

#include "tests/kernels/kernel_testing.h"

namespace caravan {

/// Blocks of one sequence. Unwritten values are NaN, so that reading one shows.
class TestCache {
 public:
  TestCache(const MlaShape& shape, int64_t block_tokens, int64_t num_positions)
      : width_(shape.kv_width()), block_tokens_(block_tokens) {
    const int64_t num_blocks = (num_positions + block_tokens - 1) / block_tokens;
    blocks_.assign(num_blocks, std::vector<float>(block_tokens * width_, NAN));
    for (std::vector<float>& block : blocks_) pointers_.push_back(block.data());
  }

  int64_t block_tokens() const { return block_tokens_; }
  float* Row(int64_t position) {
    return pointers_[position / block_tokens_] + position % block_tokens_ * width_;
  }
  /// `num_rows` rows of a batch, from `first_row` on, at positions from `first_position` on.
  SequenceRows Rows(int64_t first_row, int64_t num_rows, int64_t first_position) const {
    return {first_row, num_rows, first_position, pointers_};
  }

 private:
  int64_t width_;
  int64_t block_tokens_;
  std::vector<std::vector<float>> blocks_;
  std::vector<float*> pointers_;
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
