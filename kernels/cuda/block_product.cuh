#ifndef CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_
#define CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_

// The product kernel of the block formats. Included once for each, by block_product_<format>.cu.

#include "kernels/cuda/block_formats.cuh"
#include "kernels/cuda/product_pass.cuh"

namespace caravan {

/// out[n, r] = sum over chunks of sum over blocks b of scale_w[r, b] * scale_x[n, b] *
/// (codes_w[r, b] . codes_x[n, b]) - mins, for up to max(1, 8 N) rows of activations.
///
/// Weights: tiles [num_tiles] of 16 rows (kTiled16), 16 * DTypeBytes(cols) each, one or two
/// matrices. Activations: ActivationRows. Grid: passes x groups of slots; a block has up to 8
/// warps, a warp as many units (a slot's chunk of 512 columns) as the others. Shared memory: what a
/// warp decodes, 1 KiB for each of its tiles, and 4 bytes for each unit's sum.
/// Reads each weight once for each pass; 2 * 16 * cols operations a tile and row.
template <class Format, int N, bool kOne>
struct BlockProduct {
  static constexpr int kTiles = N > 1 ? 2 : 1;
  static constexpr int kMaxRows = kOne ? 1 : 8 * N;
  static constexpr int kSlotRows = 16 * kTiles;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = N == 1 ? 3 : N == 2 ? 2 : 1;
  static constexpr int kGroupColumns = 32 * Format::kGroupBlocks;
  static constexpr int kChunkGroups = kChunkColumns / kGroupColumns;
  static constexpr int kShared = Format::kUsesShared ? 64 : 0;  // uint4s a tile

  /// A lane's activation rows: where their codes and scales begin, in bytes.
  struct Rows {
    uint32_t codes[N];
    uint32_t scales[N][kOne ? 1 : 2];
  };

  __device__ static Rows FindRows(const ProductArgs& args, const ProductPass& pass,
                                  const Lane& lane) {
    Rows rows;
    const auto row = [&](int n) {  // Past the last: the last again.
      return static_cast<uint32_t>(RowAt(args.in_rows, pass.first + min(n, pass.count - 1)));
    };
#pragma unroll
    for (int n = 0; n < N; ++n) {
      rows.codes[n] = row(kOne ? 0 : 8 * n + lane.group) * args.padded_columns + lane.quad * 16;
#pragma unroll
      for (int i = 0; i < (kOne ? 1 : 2); ++i) {
        rows.scales[n][i] =
            row(kOne ? 0 : 8 * n + 2 * lane.quad + i) * (args.padded_columns / 32) *
            static_cast<uint32_t>(sizeof(ActivationScale));
      }
    }
    return rows;
  }

  /// A group of each tile: where it lies, and how many of its blocks there are.
  struct Group {
    const uint8_t* at[kTiles];
    int blocks;
  };

  __device__ static void Load(const Group& group, const Lane& lane, int stage,
                              typename Format::Raw (&raw)[kTiles]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      Format::Load(group.at[t], lane, group.blocks, stage, raw[t]);
    }
  }

  /// acc += the products of one group of each tile, which begins at column `column`. If there are
  /// `more`, `raw` becomes the next group as it gets free.
  __device__ static void AddGroup(const ProductArgs& args, const Rows& rows, const Lane& lane,
                                  int column, bool more, const Group& next, uint4* shared,
                                  typename Format::Raw (&raw)[kTiles], float (&acc)[kTiles][N][4]) {
    if (Format::kUsesShared) {
      __syncwarp();  // The group before has been read.
#pragma unroll
      for (int t = 0; t < kTiles; ++t) Format::Prepare(raw[t], lane, shared + t * kShared);
      __syncwarp();
      if (more) Load(next, lane, kPrepared, raw);
    }
    const int8_t* codes = args.x.codes + column;
    const auto* scales = reinterpret_cast<const uint8_t*>(args.x.scales + column / 32);
#pragma unroll
    for (int pair = 0; pair < Format::kGroupBlocks / 2; ++pair) {
      uint2 b[2][N];
      float dx[2][N][2], sx[2][N][2];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint4 both = __ldg(reinterpret_cast<const uint4*>(codes + rows.codes[n] + pair * 64));
        b[0][n] = make_uint2(both.x, both.y);
        b[1][n] = make_uint2(both.z, both.w);
#pragma unroll
        for (int i = 0; i < (kOne ? 1 : 2); ++i) {
          const float4 two = __ldg(reinterpret_cast<const float4*>(
              scales + rows.scales[n][i] + pair * 2 * sizeof(ActivationScale)));
          dx[0][n][i] = two.x;
          sx[0][n][i] = two.y;
          dx[1][n][i] = two.z;
          sx[1][n][i] = two.w;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          Format::template Add<N, kOne>(raw[t], shared + t * kShared, lane, 2 * pair + half,
                                        b[half], dx[half], sx[half], acc[t]);
        }
      }
      if (more) Load(next, lane, pair, raw);
    }
  }

  /// Adds a chunk's sums to those of a unit; to zeros if it is the unit's first.
  __device__ static void AddSums(const Lane& lane, const float (&acc)[kTiles][N][4], bool first,
                                 float* unit) {
    if (kOne && lane.quad != 0) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int i = 0; i < (kOne ? 1 : 2); ++i) {
          const int row = kOne ? 0 : 8 * n + 2 * lane.quad + i;
          auto* place =
              reinterpret_cast<float2*>(unit + row * kSlotRows + t * 16 + 2 * lane.group);
          float2 sum = first ? make_float2(0, 0) : *place;
          sum.x = __fadd_rn(sum.x, acc[t][n][i]);
          sum.y = __fadd_rn(sum.y, acc[t][n][2 + i]);
          *place = sum;
        }
      }
    }
  }

  /// The units of one warp.
  __device__ static void Run(const ProductArgs& args, const ProductPass& pass, uint4* shared,
                             float* sums) {
    const Lane lane = ThisLane();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    const int units = args.slots * args.chunks;
    int unit = warp * units / warps;
    const int last_unit = (warp + 1) * units / warps;
    const int groups = (args.cols + kGroupColumns - 1) / kGroupColumns;
    shared += warp * kTiles * kShared;
    const Rows rows = FindRows(args, pass, lane);

    int slot = unit / args.chunks;
    int group = (unit - slot * args.chunks) * kChunkGroups;
    typename Format::Raw raw[kTiles];
    Group next;
    const auto find_group = [&] {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        next.at[t] = TileOfSlot(args, pass, kTiles, slot, t) +
                     static_cast<int64_t>(group) * Format::kGroupBytes;
      }
      next.blocks = args.cols / 32 - group * Format::kGroupBlocks;
    };
    find_group();
#pragma unroll
    for (int stage = kPrepared; stage < Format::kGroupBlocks / 2; ++stage) {
      Load(next, lane, stage, raw);
    }
    float acc[kTiles][N][4] = {};
    bool more = true;
    while (more) {
      const int column = group * kGroupColumns;
      const int this_unit = unit;
      ++group;
      const bool row_ends = group == groups;
      const bool chunk_ends = row_ends || group % kChunkGroups == 0;
      if (chunk_ends) ++unit;
      more = unit < last_unit;
      if (row_ends && more) {
        group = 0;
        ++slot;
        find_group();
      } else {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) next.at[t] += Format::kGroupBytes;
        next.blocks -= Format::kGroupBlocks;
      }
      AddGroup(args, rows, lane, column, more, next, shared, raw, acc);
      if (chunk_ends) {
        AddSums(lane, acc, !args.whole || column < kChunkColumns,
                sums + (args.whole ? warp : this_unit) * kMaxRows * kSlotRows);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
#pragma unroll
          for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[t][n][i] = 0;
          }
        }
      }
    }
  }
};

template <class Format, int N, bool kOne>
__global__ void __launch_bounds__(BlockProduct<Format, N, kOne>::kMaxThreads,
                                  BlockProduct<Format, N, kOne>::kMinBlocks)
    BlockProductKernel(const __grid_constant__ ProductArgs args) {
  using Product = BlockProduct<Format, N, kOne>;
  extern __shared__ uint4 shared[];
  ProductPass pass;
  if (!FindPass(args, Product::kMaxRows, pass)) return;
  const int warps = static_cast<int>(blockDim.x) / 32;
  float* sums = reinterpret_cast<float*>(shared + warps * Product::kTiles * Product::kShared);
  Product::Run(args, pass, shared, sums);
  __syncthreads();
  StoreResults<Product::kSlotRows>(args, pass, 0, pass.count, sums, Product::kMaxRows);
}

template <class Format, int N, bool kOne>
ProductKernel BlockKernel() {
  using Product = BlockProduct<Format, N, kOne>;
  return {.function = reinterpret_cast<const void*>(BlockProductKernel<Format, N, kOne>),
          .max_rows = Product::kMaxRows,
          .stored_rows = Product::kMaxRows,
          .tiles_a_slot = Product::kTiles,
          .warp_shared_bytes =
              static_cast<int>(Product::kTiles * Product::kShared * sizeof(uint4))};
}

template <class Format>
BlockProductKernels BlockKernels() {
  return {{BlockKernel<Format, 1, true>(), BlockKernel<Format, 1, false>(),
           BlockKernel<Format, 2, false>(), BlockKernel<Format, 4, false>()}};
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_
