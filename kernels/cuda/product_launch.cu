#include "kernels/cuda/product_launch.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/float_product.h"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

/// What a block may ask for without being allowed to.
constexpr int64_t kPlainSharedBytes = 48 << 10;

BlockProductKernels BlockKernelsOf(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return ProductKernelsOfQ4_0();
    case DType::kQ8_0:
      return ProductKernelsOfQ8_0();
    case DType::kQ2_K:
      return ProductKernelsOfQ2_K();
    case DType::kQ3_K:
      return ProductKernelsOfQ3_K();
    case DType::kQ4_K:
      return ProductKernelsOfQ4_K();
    case DType::kQ5_K:
      return ProductKernelsOfQ5_K();
    case DType::kQ6_K:
      return ProductKernelsOfQ6_K();
    default:
      return {};
  }
}

struct Shape {
  int64_t groups = 0;  // of slots
  int warps = 0;
  int64_t shared_bytes = 0;
};

/// A block's shape for args.slots, whole, slab_chunks and at most args.slab_buffers; sets what
/// follows from them.
Shape ShapeFor(const ProductKernel& kernel, ProductArgs& args) {
  const int64_t tiles = args.num_matrices == 2 ? args.swiglu_columns / kTileRows : args.num_tiles;
  const int units = args.slots * args.slab_chunks;
  Shape shape;
  shape.groups = CeilDiv<int64_t>(tiles, args.slots / args.num_matrices * kernel.tiles_a_slot);
  // As few warps as finish as early as the most would.
  shape.warps = args.whole ? args.slots : CeilDiv(units, CeilDiv(units, kernel.max_warps));
  args.slabs = CeilDiv(args.chunks, args.slab_chunks);
  args.slab_buffers = std::min(args.slab_buffers, args.slabs);
  const int64_t sums = args.slots * (args.whole ? 1 : args.chunks);
  shape.shared_bytes =
      int64_t{shape.warps} * (kernel.decoded_bytes + args.stages * kernel.stage_bytes) +
      sums * kernel.stored_rows * kernel.tiles_a_slot * kTileRows *
          static_cast<int64_t>(sizeof(float));
  if (!kernel.stages_activations) return shape;
  const int columns = std::min(args.slab_chunks * kChunkColumns, args.padded_columns);
  args.code_pitch = columns + 64;
  args.scale_pitch = columns / 32 * static_cast<int>(sizeof(ActivationScale)) + 16;
  shape.shared_bytes +=
      int64_t{args.slab_buffers} * kernel.max_rows * (args.code_pitch + args.scale_pitch);
  return shape;
}

/// Chooses args.slots, whole, slab_chunks, slab_buffers and stages: what keeps most warps at work
/// on all multiprocessors to the end. Of about equals: whole slots, which share what a block reads
/// of its activations best, then many slots, then few slabs.
Shape ChooseShape(const CudaDevice& device, const ProductKernel& kernel, int64_t max_passes,
                  ProductArgs& args) {
  // Of a multiprocessor: that wait for each other's memory no longer.
  constexpr double kEnoughWarps = 16;
  const int least = args.num_matrices == 1 ? 1 : kernel.tiles_a_slot == 1 ? 4 : 2;
  // As their registers allow.
  const int64_t most_blocks = kernel.max_rows <= 8 ? 3 : kernel.max_rows <= 16 ? 2 : 1;
  double best_score = -1;
  ProductArgs best = args;
  const auto consider = [&](int slots, bool whole, int slab_chunks, int buffers) {
    ProductArgs candidate = args;
    candidate.slots = slots;
    candidate.whole = whole;
    candidate.slab_chunks = slab_chunks;
    candidate.slab_buffers = buffers;
    // So that three blocks of one tile a warp share a multiprocessor's memory.
    candidate.stages = kernel.max_rows <= 8 && kernel.stage_bytes < 2200 ? 3 : 2;
    const Shape shape = ShapeFor(kernel, candidate);
    if (shape.shared_bytes > device.max_shared_bytes()) return;
    constexpr int64_t kReservedBytes = 1 << 10;  // for each block
    const int64_t resident = std::min(most_blocks, (device.max_shared_bytes() + kReservedBytes) /
                                                       (shape.shared_bytes + kReservedBytes));
    const double blocks = static_cast<double>(shape.groups * max_passes) /
                          static_cast<double>(device.num_multiprocessors());
    const double warps = std::min(blocks, static_cast<double>(resident)) * shape.warps;
    // Of two waves the second takes as long as the first, however few blocks it has; of more it
    // matters less.
    const double waves = blocks / static_cast<double>(resident);
    const double busy = waves > 1 && waves < 2 ? waves / 2 : blocks / std::ceil(blocks);
    const double score = std::min(warps, kEnoughWarps) * busy;
    if (score <= 1.1 * best_score) return;
    best_score = score;
    best = candidate;
  };
  if (kernel.max_rows > 1) {
    for (int slots = kernel.max_warps; slots >= least; slots /= 2) {
      for (int buffers = 2; buffers > 0; --buffers) consider(slots, true, 1, buffers);
    }
  }
  for (int slots = 4; slots >= least; slots /= 2) {
    if (!kernel.stages_activations) {
      consider(slots, false, args.chunks, 1);
      continue;
    }
    for (int chunks = args.chunks; chunks > 0; chunks = chunks == 1 ? 0 : CeilDiv(chunks, 2)) {
      for (int buffers = 2; buffers > 0; --buffers) consider(slots, false, chunks, buffers);
    }
  }
  CARAVAN_CHECK(best_score >= 0);
  args = best;
  Shape shape = ShapeFor(kernel, args);
  if (!kernel.overlaps) return shape;
  // Where a multiprocessor's blocks leave room for one more, which may be the next kernel's, rings
  // as deep as a warp has use for: all of its weights are on their way at once. If there is a block
  // for each multiprocessor, it has the memory alone: two of one kernel beside one of the last's
  // would make that multiprocessor the slowest.
  const int64_t blocks = CeilDiv<int64_t>(shape.groups * max_passes, device.num_multiprocessors());
  const int64_t room = blocks == 1 ? device.max_shared_bytes()
                                   : device.max_shared_bytes() / (blocks + 1) - (1 << 10);
  const int warp_groups =
      CeilDiv(args.slots * args.chunks, shape.warps) * CeilDiv(kChunkColumns, kernel.group_columns);
  while (args.stages < std::min(kMaxStages, warp_groups + 1)) {
    ProductArgs deeper = args;
    ++deeper.stages;
    const Shape found = ShapeFor(kernel, deeper);
    if (found.shared_bytes > room) break;
    args = deeper;
    shape = found;
  }
  if (blocks == 1) {
    shape.shared_bytes = std::max(shape.shared_bytes, device.max_shared_bytes() / 2 + 1024);
  }
  return shape;
}

absl::Status Launch(const CudaStream& stream, const ProductKernel& kernel, const Shape& shape,
                    int64_t max_passes, void** arguments) {
  if (shape.shared_bytes > kPlainSharedBytes) {
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel.function,
                                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                      static_cast<int>(shape.shared_bytes)));
  }
  const dim3 grid(static_cast<unsigned>(max_passes), static_cast<unsigned>(shape.groups));
  const dim3 block(static_cast<unsigned>(shape.warps) * 32);
  if (!kernel.overlaps) {
    CARAVAN_CUDA_RETURN_IF_ERROR(cudaLaunchKernel(kernel.function, grid, block, arguments,
                                                  static_cast<size_t>(shape.shared_bytes),
                                                  stream.get()));
    return absl::OkStatus();
  }
  return LaunchOverlapped(stream, "a product's kernel", grid, block, shape.shared_bytes,
                          [&](const cudaLaunchConfig_t& config) {
                            return cudaLaunchKernelExC(&config, kernel.function, arguments);
                          });
}

}  // namespace

bool TakesActivationRows(DType dtype) { return BlockOf(dtype).values > 1; }

int WidthFor(int64_t rows) {
  int width = 0;
  while (width + 1 < kNumWidths && kWidthRows[width] < rows) ++width;
  return width;
}

void SetWeights(const Matrix& w, ProductArgs& args) {
  CARAVAN_CHECK(w.rows <= std::numeric_limits<int>::max() - 256 &&
                w.cols <= std::numeric_limits<int>::max() - kChunkColumns);
  args.matrices[0] = w.data;
  args.scales[0] = w.scale_inv;
  args.first_tile = 0;
  args.num_tiles = static_cast<int>(Tiles(w.rows));
  args.rows = static_cast<int>(w.rows);
  args.cols = static_cast<int>(w.cols);
  args.tile_bytes = TileBytes(w.dtype, w.cols);
  args.padded_columns = static_cast<int>(PaddedColumns(w.cols));
  args.chunks = std::max(1, CeilDiv(args.cols, kChunkColumns));
}

absl::Status LaunchProduct(const CudaStream& stream, DType dtype, int width, int64_t max_passes,
                           ProductArgs args) {
  if (max_passes == 0 || args.num_tiles == 0) return absl::OkStatus();
  if (TakesActivationRows(dtype)) {
    const ProductKernel kernel = BlockKernelsOf(dtype).widths[width];
    const Shape shape = ChooseShape(stream.device(), kernel, max_passes, args);
    void* arguments[] = {&args};
    return Launch(stream, kernel, shape, max_passes, arguments);
  }
  CARAVAN_CHECK(args.num_matrices == 1);
  int pass_rows = kWidthRows[width];
  int float_width = 0;
  while (float_width + 1 < kNumFloatWidths && kFloatWidthRows[float_width] < pass_rows) {
    ++float_width;
  }
  if (args.passes == nullptr) {  // Then a pass is what the kernel takes at a time.
    // A small matrix's weights are read again from the card's cache rather than by few blocks.
    const auto num_passes = [&] {
      return CeilDiv<int64_t>(args.num_rows, kFloatWidthRows[float_width]);
    };
    while (float_width > 0 &&
           num_passes() * args.num_tiles < stream.device().num_multiprocessors()) {
      --float_width;
    }
    pass_rows = kFloatWidthRows[float_width];
    max_passes = num_passes();
  }
  const int rows = kFloatWidthRows[float_width];
  const ProductKernel kernel = {.function = FloatProductKernelsOf(dtype).widths[float_width],
                                .max_rows = 1,
                                .max_warps = kMaxFloatWarps,
                                .stored_rows = rows};
  const Shape shape = ChooseShape(stream.device(), kernel, max_passes, args);
  void* arguments[] = {&args, &pass_rows};
  return Launch(stream, kernel, shape, max_passes, arguments);
}

}  // namespace caravan
