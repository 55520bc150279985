#ifndef CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_
#define CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_

// The product kernel of the block formats. Included once for each, by block_product_<format>.cu.

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/block_formats.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/product_pass.cuh"

namespace caravan {

/// out[n, r] = sum over chunks of sum over blocks b of scale_w[r, b] * scale_x[n, b] *
/// (codes_w[r, b] . codes_x[n, b]) - mins, for up to max(1, 8 N) rows of activations.
///
/// Weights: tiles [num_tiles] of 16 rows (kTiled16), 16 * DTypeBytes(cols) each, one or two
/// matrices. Activations: ActivationRows. Grid: passes x groups of slots; a block has up to 8
/// warps. The columns are walked in slabs, whose activations lie in shared memory, where there is
/// room the next slab's on their way; of a slab's units (a slot's chunk of 512 columns) the warps
/// have equal parts. A warp copies its groups of weights to a ring in shared memory, args.stages at
/// a time. Shared memory: the rings; what a warp decodes, 1 KiB for each of its tiles; 1.25 bytes a
/// column of the slab and row, twice if there are several slabs; 4 bytes for each unit's sum. Reads
/// each weight once for each pass; 2 * 16 * cols operations a tile and row.
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
  static constexpr int kDecodedBytes = kTiles * kShared * 16;   // of a warp
  static constexpr int kStageBytes = kTiles * Format::kGroupBytes;
  static constexpr bool kOverlaps = N < 4;  // ProductKernel::overlaps

  /// The activations of a slab in shared memory.
  struct Slab {
    const uint8_t* codes;   // the lane's, of row `group`
    const uint8_t* scales;  // of row 2 quad
    int code_pitch, scale_pitch;
  };

  /// Where a warp is: a group of its slot's tiles.
  struct Cursor {
    int slab, unit, last_unit;
    int slot, chunk, group;
    int slab_chunks, end_chunk;  // of this slab
    const uint8_t* at[kTiles];
    int blocks;  // from the group on
  };

  /// Goes to the first unit of slab `slab` or of the next in which the warp has one.
  __device__ static void EnterSlab(const ProductArgs& args, const ProductPass& pass, int slab,
                                   Cursor& cursor) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (; slab < args.slabs; ++slab) {
      cursor.slab_chunks = min(args.slab_chunks, args.chunks - slab * args.slab_chunks);
      cursor.end_chunk = slab * args.slab_chunks + cursor.slab_chunks;
      const int units = args.slots * cursor.slab_chunks;
      cursor.unit = warp * units / warps;
      cursor.last_unit = (warp + 1) * units / warps;
      if (cursor.unit < cursor.last_unit) break;
    }
    cursor.slab = slab;
    if (slab == args.slabs) return;
    cursor.slot = cursor.unit / cursor.slab_chunks;
    cursor.chunk = slab * args.slab_chunks + cursor.unit - cursor.slot * cursor.slab_chunks;
    FindGroup(args, pass, cursor);
  }

  /// The first group of the cursor's chunk.
  __device__ static void FindGroup(const ProductArgs& args, const ProductPass& pass,
                                   Cursor& cursor) {
    cursor.group = cursor.chunk * kChunkGroups;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      cursor.at[t] = TileOfSlot(args, pass, kTiles, cursor.slot, t) +
                     static_cast<int64_t>(cursor.group) * Format::kGroupBytes;
    }
    cursor.blocks = args.cols / 32 - cursor.group * Format::kGroupBlocks;
  }

  /// Goes to the warp's next group. Returns whether that begins another unit, or there is none.
  __device__ static bool Advance(const ProductArgs& args, const ProductPass& pass, Cursor& cursor) {
    ++cursor.group;
    cursor.blocks -= Format::kGroupBlocks;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) cursor.at[t] += Format::kGroupBytes;
    if (cursor.blocks > 0 && cursor.group % kChunkGroups != 0) return false;
    if (args.whole) {  // A slab is the next chunk of the warp's own slot.
      ++cursor.chunk;
      ++cursor.slab;
    } else if (++cursor.unit == cursor.last_unit) {
      EnterSlab(args, pass, cursor.slab + 1, cursor);
    } else if (++cursor.chunk == cursor.end_chunk) {
      cursor.chunk -= cursor.slab_chunks;
      ++cursor.slot;
      FindGroup(args, pass, cursor);
    }
    return true;
  }

  /// Begins to copy the cursor's groups to a stage of the ring.
  __device__ static void CopyGroup(const Cursor& cursor, const Lane& lane, uint8_t* stage) {
    constexpr int kBlockBytes = Format::kGroupBytes / Format::kGroupBlocks;
    const int bytes = min(cursor.blocks, Format::kGroupBlocks) * kBlockBytes;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int at = 0; at < Format::kGroupBytes; at += 512) {
        const int place = at + lane.lane * 16;
        if (at + 512 > Format::kGroupBytes && place >= Format::kGroupBytes) continue;
        const bool there = place < bytes;
        CopyAhead(stage + t * Format::kGroupBytes + place, cursor.at[t] + (there ? place : 0),
                  there);
      }
    }
  }

  /// Begins to copy the activations of a slab to `to`.
  __device__ static void CopySlab(const ProductArgs& args, const ProductPass& pass, int slab,
                                  uint8_t* to) {
    const int first = slab * args.slab_chunks * kChunkColumns;
    const int columns = min(args.slab_chunks * kChunkColumns, args.padded_columns - first);
    const int code_pieces = columns / 16;
    const int row_pieces = code_pieces + columns / 64;
    uint8_t* const scales = to + kMaxRows * args.code_pitch;
    for (int i = static_cast<int>(threadIdx.x); i < row_pieces * pass.count;
         i += static_cast<int>(blockDim.x)) {
      const int n = i / row_pieces, piece = i % row_pieces;
      const int64_t row = RowAt(args.in_rows, pass.first + n);
      if (piece < code_pieces) {
        CopyAhead(to + n * args.code_pitch + piece * 16,
                  reinterpret_cast<const uint8_t*>(args.x.codes) + row * args.padded_columns +
                      first + piece * 16);
      } else {
        CopyAhead(scales + n * args.scale_pitch + (piece - code_pieces) * 16,
                  reinterpret_cast<const uint8_t*>(args.x.scales +
                                                   (row * args.padded_columns + first) / 32) +
                      (piece - code_pieces) * 16);
      }
    }
  }

  /// acc += the products of one group of each tile, whose activations begin at column `column` of
  /// the slab.
  __device__ static void AddGroup(const Slab& slab, const Lane& lane, int column,
                                  const uint8_t* stage, uint4* shared, float (&acc)[kTiles][N][4]) {
    if (Format::kUsesShared) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        Format::Prepare(stage + t * Format::kGroupBytes, lane, shared + t * kShared);
      }
      __syncwarp();
    }
    const uint8_t* codes = slab.codes + column;
    const uint8_t* scales = slab.scales + column / 32 * sizeof(ActivationScale);
#pragma unroll
    for (int pair = 0; pair < Format::kGroupBlocks / 2; ++pair) {
      uint2 b[2][N];
      float dx[2][N][2], sx[2][N][2];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint4 both =
            *reinterpret_cast<const uint4*>(codes + n * 8 * slab.code_pitch + pair * 64);
        b[0][n] = make_uint2(both.x, both.y);
        b[1][n] = make_uint2(both.z, both.w);
#pragma unroll
        for (int i = 0; i < (kOne ? 1 : 2); ++i) {
          const float4 two = *reinterpret_cast<const float4*>(
              scales + (n * 8 + i) * slab.scale_pitch + pair * 2 * sizeof(ActivationScale));
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
          Format::template Add<N, kOne>(stage + t * Format::kGroupBytes, shared + t * kShared, lane,
                                        2 * pair + half, b[half], dx[half], sx[half], acc[t]);
        }
      }
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
          auto* place = reinterpret_cast<float2*>(unit + row * kSlotRows + t * 16 + 2 * lane.group);
          float2 sum = first ? make_float2(0, 0) : *place;
          sum.x = __fadd_rn(sum.x, acc[t][n][i]);
          sum.y = __fadd_rn(sum.y, acc[t][n][2 + i]);
          *place = sum;
        }
      }
    }
  }

  /// Until all but the last stages - 2 batches of the thread's copies are there.
  __device__ static void WaitForStage(int stages) {
    static_assert(kMaxStages == 8);
    switch (stages) {
      case 2:
        return WaitForCopies<0>();
      case 3:
        return WaitForCopies<1>();
      case 4:
        return WaitForCopies<2>();
      case 5:
        return WaitForCopies<3>();
      case 6:
        return WaitForCopies<4>();
      case 7:
        return WaitForCopies<5>();
      default:
        return WaitForCopies<6>();
    }
  }

  /// All units of the block. shared: kDecodedBytes and the stages of its ring for each warp.
  __device__ static void Run(const ProductArgs& args, const ProductPass& pass, uint8_t* shared,
                             uint8_t* slabs, float* sums) {
    const Lane lane = ThisLane();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int slab_bytes = kMaxRows * (args.code_pitch + args.scale_pitch);
    const int stages = args.stages;
    uint8_t* const own = shared + warp * (kDecodedBytes + stages * kStageBytes);
    auto* const decoded = reinterpret_cast<uint4*>(own);
    uint8_t* const ring = own + kDecodedBytes;
    Cursor here, ahead;  // `ahead` is what is copied next.
    EnterSlab(args, pass, 0, ahead);
    here = ahead;
    // Each batch of copies has one group, or none past the end, and a slab before its first group;
    // but the first slab comes last, as weights need not wait for the kernel that makes it.
    for (int stage = 0; stage < stages - 1; ++stage) {
      if (ahead.slab < args.slabs) {
        CopyGroup(ahead, lane, ring + stage * kStageBytes);
        Advance(args, pass, ahead);
      }
      CommitCopies();
    }
    WaitForEarlier();
    CopySlab(args, pass, 0, slabs);
    CommitCopies();
    int stage = 0;
    int batches = 1;  // Since the slab's copies were begun, theirs included.
    float acc[kTiles][N][4] = {};
    for (int slab = 0; slab < args.slabs; ++slab) {
      if (args.slab_buffers == 1 && slab > 0) {
        __syncthreads();  // The slab before has been read.
        CopySlab(args, pass, slab, slabs);
        CommitCopies();
        batches = 1;
      }
      if (batches > stages - 2) {
        WaitForStage(stages);  // As for the first group, which was begun no later.
      } else {
        WaitForCopies<0>();
      }
      __syncthreads();  // Everyone's copies; and the slab before has been read.
      batches = 0;
      if (args.slab_buffers == 2 && slab + 1 < args.slabs) {
        CopySlab(args, pass, slab + 1, slabs + (slab + 1) % 2 * slab_bytes);
      }
      const uint8_t* codes = slabs + slab % args.slab_buffers * slab_bytes;
      const Slab activations = {
          codes + (kOne ? 0 : lane.group * args.code_pitch) + lane.quad * 16,
          codes + kMaxRows * args.code_pitch + (kOne ? 0 : 2 * lane.quad * args.scale_pitch),
          args.code_pitch, args.scale_pitch};
      while (here.slab == slab) {
        WaitForStage(stages);
        __syncwarp();  // Every lane's copies; and the group before has been read.
        if (ahead.slab < args.slabs) {
          const int free = stage == 0 ? stages - 1 : stage - 1;
          CopyGroup(ahead, lane, ring + free * kStageBytes);
          Advance(args, pass, ahead);
        }
        CommitCopies();
        ++batches;
        AddGroup(activations, lane,
                 here.group * kGroupColumns - slab * args.slab_chunks * kChunkColumns,
                 ring + stage * kStageBytes, decoded, acc);
        stage = stage + 1 == stages ? 0 : stage + 1;
        const int slot = here.slot, chunk = here.chunk;
        if (!Advance(args, pass, here)) continue;
        AddSums(lane, acc, !args.whole || chunk == 0,
                sums + (args.whole ? slot : slot * args.chunks + chunk) * kMaxRows * kSlotRows);
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
  extern __shared__ uint4 dynamic_shared[];
  auto* const shared = reinterpret_cast<uint8_t*>(dynamic_shared);
  if (Product::kOverlaps) LetNextBegin();
  if (args.passes != nullptr) WaitForEarlier();
  ProductPass pass;
  if (!FindPass(args, Product::kMaxRows, pass)) return;
  const int warps = static_cast<int>(blockDim.x) / 32;
  uint8_t* const slabs =
      shared + warps * (Product::kDecodedBytes + args.stages * Product::kStageBytes);
  auto* sums = reinterpret_cast<float*>(slabs + args.slab_buffers * Product::kMaxRows *
                                                    (args.code_pitch + args.scale_pitch));
  Product::Run(args, pass, shared, slabs, sums);
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
          .stages_activations = true,
          .overlaps = Product::kOverlaps,
          .group_columns = Product::kGroupColumns,
          .decoded_bytes = Product::kDecodedBytes,
          .stage_bytes = Product::kStageBytes};
}

template <class Format>
BlockProductKernels BlockKernels() {
  return {{BlockKernel<Format, 1, true>(), BlockKernel<Format, 1, false>(),
           BlockKernel<Format, 2, false>(), BlockKernel<Format, 4, false>()}};
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_BLOCK_PRODUCT_CUH_
