#ifndef CARAVAN_KERNELS_CUDA_PRODUCT_ARGS_H_
#define CARAVAN_KERNELS_CUDA_PRODUCT_ARGS_H_

// What the product kernels take, and the canonical order in which all of them add.
//
// The dot product of an activation row with a weight row is cut into chunks of kChunkColumns
// columns. The sums of the chunks are added in order, from 0. Within a chunk:
// - block formats: the blocks of 32 in order, each an exact integer dot product that is scaled and
//   added (BlockFormat::Add says how);
// - formats of single values: 16 sums, of the columns c with equal c % 16, in order by fused
//   multiply-add; then (i + 8), (i + 4), (i + 2), (i + 1) of them are added to i.
// So a result depends on its own row, its weights and the number of columns alone: which kernel,
// how many rows with it, how many warps a thread block has, do not matter.

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/activations.h"

namespace caravan {

inline constexpr int kChunkColumns = 512;
/// Stages of a warp's ring of weights in shared memory: what is read ahead and what is used.
inline constexpr int kMaxStages = 8;

/// Matrices of one expert, and the rows that go through them in one thread block. Matrices: gate,
/// up, down.
struct ExpertPass {
  const std::byte* matrices[3];
  const float* scales[3];  // Matrix::scale_inv
  int32_t first;           // of the rows, in the order of ProductArgs::in_rows
  int32_t count;
};

/// out = x w^T for one matrix, or SwiGLU(x gate^T, x up^T) as activation blocks for two. With
/// passes, for many experts at once, each with its own rows.
struct ProductArgs {
  // Weights, all of one shape. Null passes: the matrices given here, with all rows.
  const ExpertPass* passes = nullptr;   // of the width that the kernel takes
  const int32_t* num_passes = nullptr;  // in device memory
  const std::byte* matrices[2] = {};
  const float* scales[2] = {};
  int num_matrices = 1;
  int first_matrix = 0;  // of a pass's
  int first_tile = 0;    // of those of this launch
  int num_tiles = 0;     // of this launch
  int rows = 0;          // weight rows of the whole matrix
  int cols = 0;
  int64_t tile_bytes = 0;

  // Activations; row i of a pass is row in_rows[first + i] of these (null: first + i).
  ActivationRows x;
  const float* x_floats = nullptr;  // [.., cols]
  int padded_columns = 0;
  const int32_t* in_rows = nullptr;
  int num_rows = 0;  // without passes

  // Results; row i of a pass is row out_rows[first + i] of them (null: first + i).
  float* out = nullptr;  // [.., out_stride], from first_tile on
  int64_t out_stride = 0;
  ActivationRows swiglu;  // of two matrices
  int swiglu_columns = 0;
  const int32_t* out_rows = nullptr;

  // How a thread block shares its work: it has `slots` slots of tiles, its warps take equal parts
  // of the slots * chunks units. `whole`: a warp has a slot alone and adds its chunks as it goes.
  int slots = 1;
  int chunks = 1;
  bool whole = false;
  // The activations in shared memory: slabs of so many chunks, and bytes from row to row, of which
  // a few are there so that a warp's accesses have banks of their own.
  int slabs = 1;
  int slab_chunks = 1;
  int slab_buffers = 1;
  int stages = 2;  // of each warp's ring of weights, at most kMaxStages
  int code_pitch = 0;
  int scale_pitch = 0;
};

/// A kernel of one format and width.
struct ProductKernel {
  const void* function = nullptr;
  int max_rows = 0;     // of a pass
  int max_warps = 8;    // of a block
  int stored_rows = 0;  // that a unit's sums have room for
  int tiles_a_slot = 1;
  bool stages_activations = false;
  // Begins before the kernel ahead has ended (overlapped_launch.cuh), with rings as deep as there
  // is room for: where the weights' way is the bound. Wide ones are bound by arithmetic, and lost
  // by it.
  bool overlaps = false;
  // Of a warp's ring, and what it decodes.
  int group_columns = 0;
  int decoded_bytes = 0;
  int stage_bytes = 0;
};

/// Rows of a pass: 1, up to 8, 16, 32.
inline constexpr int kNumWidths = 4;
inline constexpr int kWidthRows[kNumWidths] = {1, 8, 16, 32};

/// The kernels of a block format.
struct BlockProductKernels {
  ProductKernel widths[kNumWidths];
};
BlockProductKernels ProductKernelsOfQ4_0();
BlockProductKernels ProductKernelsOfQ8_0();
BlockProductKernels ProductKernelsOfQ2_K();
BlockProductKernels ProductKernelsOfQ3_K();
BlockProductKernels ProductKernelsOfQ4_K();
BlockProductKernels ProductKernelsOfQ5_K();
BlockProductKernels ProductKernelsOfQ6_K();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_PRODUCT_ARGS_H_
