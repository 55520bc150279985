#ifndef CARAVAN_KERNELS_CPU_CPU_SCRATCH_H_
#define CARAVAN_KERNELS_CPU_CPU_SCRATCH_H_

// What the CPU backend's scratch memory grows to, from shapes alone: who promises how much memory a
// process takes counts with it. Pure functions.

#include <cstdint>

#include "kernels/backend.h"

namespace caravan {

/// The sizes of a model that the scratch follows, and the rows of its largest call.
struct CpuScratchShape {
  MlaShape mla;
  int64_t most_columns = 0;  // of a matrix that MatMul takes
  int64_t hidden_size = 0;
  int64_t dense_inter = 0;   // the most of a feed-forward network that all rows take
  int64_t expert_inter = 0;  // of a routed one
  int64_t experts_per_row = 0;
  int64_t max_rows = 0;
};

/// What threads share, at most: activations in the form that the matrices take, the queries and
/// sums of attention, what lies between the matrices of feed-forward networks, and the products of
/// experts that come from a disk before their turn.
int64_t CpuScratchBytes(const CpuScratchShape& shape);

/// What each thread has to itself, at most, in models of R1's size: a few hundred KiB of
/// activations and sums in matrix products, and in attention up to four states of 128 queries of
/// 514 floats.
inline constexpr int64_t kCpuScratchBytesPerThread = int64_t{2} << 20;

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_CPU_SCRATCH_H_
