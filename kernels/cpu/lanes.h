#ifndef CARAVAN_KERNELS_CPU_LANES_H_
#define CARAVAN_KERNELS_CPU_LANES_H_

// The CPU backend's threads, and the scratch memory that each of them works in. Used by one thread
// at a time. Scratch grows to the largest size asked for and is kept, so that a steady state
// allocates nothing.

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/thread_pool.h"
#include "kernels/cpu/activation_block.h"

namespace caravan {

/// A buffer that only grows. What it holds does not survive a growth.
template <typename T>
class ScratchBuffer {
 public:
  T* Get(int64_t count) {
    if (static_cast<int64_t>(values_.size()) < count) {
      values_.clear();  // so that growing copies nothing
      values_.resize(count);
    }
    return values_.data();
  }

 private:
  std::vector<T> values_;
};

/// What one thread works in. The names are the users' to give: see each kernel.
struct LaneScratch {
  ScratchBuffer<float> weights;                  // decoded weights
  ScratchBuffer<float> floats[4];                // a kernel's own
  ScratchBuffer<const float*> pointers[2];       // rows that go into RowOps
  ScratchBuffer<const ActivationBlock*> blocks;  // rows that go into MultiplyTiles
  ScratchBuffer<const float*> weight_columns;    // MultiplyTile's own
  // MultiplyTiles's own.
  ScratchBuffer<float> tile_sums;
  ScratchBuffer<const ActivationBlock*> block_pointers;
};

class Lanes {
 public:
  explicit Lanes(int num_threads) : scratch_(num_threads), pool_(num_threads) {}

  int num_threads() const { return pool_.num_threads(); }

  /// Calls body(item, scratch) once for each item of [0, count), on as many threads as `work` (of
  /// all items together, in multiply-adds) is worth waking; returns when all are done. Which thread
  /// takes an item is not fixed, so `body` must not let that show in its results.
  void ForEach(int64_t count, int64_t work, absl::FunctionRef<void(int64_t, LaneScratch&)> body);

 private:
  std::vector<LaneScratch> scratch_;  // one a thread
  ThreadPool pool_;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_LANES_H_
