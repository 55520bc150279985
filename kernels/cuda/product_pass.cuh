#ifndef CARAVAN_KERNELS_CUDA_PRODUCT_PASS_CUH_
#define CARAVAN_KERNELS_CUDA_PRODUCT_PASS_CUH_

// What the product kernels of all formats share: which rows and weights a thread block has, its
// sums in shared memory, and what becomes of them.

#include <cstdint>

#include "kernels/cuda/product_args.h"
#include "kernels/cuda/warp_product.cuh"

namespace caravan {

/// One thread block's matrices and rows: blockIdx.x is its pass, blockIdx.y its group of tiles.
struct ProductPass {
  const std::byte* const* matrices;
  const float* const* scales;
  int first;
  int count;
};

/// Whether there is such a pass.
__device__ inline bool FindPass(const ProductArgs& args, int pass_rows, ProductPass& pass) {
  const int index = static_cast<int>(blockIdx.x);
  if (args.passes == nullptr) {
    const int first = index * pass_rows;
    pass = {args.matrices, args.scales, first, min(pass_rows, args.num_rows - first)};
    return true;
  }
  if (index >= *args.num_passes) return false;
  const ExpertPass& found = args.passes[index];
  pass = {found.matrices + args.first_matrix, found.scales + args.first_matrix, found.first,
          found.count};
  return true;
}

__device__ inline int64_t RowAt(const int32_t* rows, int i) {
  return rows == nullptr ? i : rows[i];
}

/// Slots of one matrix: with two matrices the first half of a block's slots has the one's tiles,
/// the second half the same tiles of the other.
__device__ inline int SlotsOfMatrix(const ProductArgs& args) {
  return args.slots / args.num_matrices;
}

/// The first tile of a slot, from the beginning of the matrix, and the bytes of tile `t` of it.
/// Past the last tile: the last, whose results are then not used.
__device__ inline const uint8_t* TileOfSlot(const ProductArgs& args, const ProductPass& pass,
                                            int tiles_a_slot, int slot, int t) {
  const int slots = SlotsOfMatrix(args);
  const int tile = (static_cast<int>(blockIdx.y) * slots + slot % slots) * tiles_a_slot + t;
  const std::byte* matrix = pass.matrices[slot / slots];
  return reinterpret_cast<const uint8_t*>(matrix) +
         (args.first_tile + min(tile, args.num_tiles - 1)) * args.tile_bytes;
}

/// sums [unit][stored_rows][tile rows of a slot], units slot-major: the chunks of a slot in order.
/// Adds them up for activation row `n` and row `row` of those of this block's slots.
template <int kSlotRows>
__device__ inline float SumChunks(const ProductArgs& args, const float* sums, int stored_rows,
                                  int slot, int row, int n) {
  const int chunks = args.whole ? 1 : args.chunks;
  const float* at = sums + (slot * chunks * stored_rows + n) * kSlotRows + row;
  float sum = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    sum = __fadd_rn(sum, at[chunk * stored_rows * kSlotRows]);
  }
  return sum;
}

/// Stores rows [first, first + count) of the pass: out, or SwiGLU of both matrices as blocks.
/// `sums` has activation row first + n as its row n. All threads call it, after a barrier.
template <int kSlotRows>
__device__ inline void StoreResults(const ProductArgs& args, const ProductPass& pass, int first,
                                    int count, const float* sums, int stored_rows) {
  const int slots = SlotsOfMatrix(args);
  const int block_rows = slots * kSlotRows;
  const int first_row = static_cast<int>(blockIdx.y) * block_rows;
  const int threads = static_cast<int>(blockDim.x);
  if (args.num_matrices == 1) {
    for (int i = static_cast<int>(threadIdx.x); i < count * block_rows; i += threads) {
      const int n = i / block_rows, row = i % block_rows;
      if (first_row + row >= args.num_tiles * 16 ||
          args.first_tile * 16 + first_row + row >= args.rows) {
        continue;
      }
      args.out[RowAt(args.out_rows, pass.first + first + n) * args.out_stride + first_row + row] =
          SumChunks<kSlotRows>(args, sums, stored_rows, row / kSlotRows, row % kSlotRows, n);
    }
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = block_rows / 32;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < count * blocks; i += threads / 32) {
    const int n = i / blocks, row = i % blocks * 32 + lane;
    const int block = (first_row + row) / 32;
    if (block * 32 >= args.swiglu_columns) continue;
    float value = 0;
    if (first_row + row < args.rows) {
      const int slot = row / kSlotRows;
      value =
          SwiGlu(SumChunks<kSlotRows>(args, sums, stored_rows, slot, row % kSlotRows, n),
                 SumChunks<kSlotRows>(args, sums, stored_rows, slots + slot, row % kSlotRows, n));
    }
    StoreActivationBlock(value, lane, args.swiglu, args.swiglu_columns, pass.first + first + n,
                         block);
  }
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_PRODUCT_PASS_CUH_
