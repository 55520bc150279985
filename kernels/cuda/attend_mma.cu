// Attention over the compressed cache on tensor cores, for R1's shape: kv_lora_rank 512, rope 64.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/kv_address.cuh"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"

namespace caravan {
namespace {

constexpr int kLatent = 512;
constexpr int kWidth = 576;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// A row of queries or of the cache in shared memory: pieces of 16 bytes, of which each 8 are in an
// order of the row's own, so that the same piece of 8 rows lies in 8 different groups of banks.
constexpr int kPieces = kWidth * 2 / 16;
constexpr int kRowBytes = kWidth * 2;

__device__ uint32_t PieceAt(uint32_t base, int row, int piece) {
  return base + static_cast<uint32_t>(row * kRowBytes + ((piece ^ (row & 7)) << 4));
}

__device__ void StorePiece(uint32_t at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w));
}

/// How much of the work a CTA has, and its shared memory.
template <int kHeadsT, int kPositionsT, int kStagesT>
struct MmaTile {
  static constexpr int kHeads = kHeadsT;
  static constexpr int kPositions = kPositionsT;  // of a step of the online softmax
  static constexpr int kStages = kStagesT;        // tiles of the cache in shared memory
  static constexpr int kHeadTiles = kHeads / 16;
  // Scores: 16 heads by 8 positions at a time, so many to a warp; warps along the positions.
  static constexpr int kScoreTiles = kHeadTiles * (kPositions / 8) / kWarps;
  static constexpr int kScoreWarps = kPositions / 8 / kScoreTiles;
  static_assert(kScoreTiles >= 1 && kScoreWarps * kHeadTiles == kWarps);

  static constexpr int kWeightStride = kPositions + 8;  // halves; spreads rows over banks
  // Offsets in shared memory.
  static constexpr int kQueries = 0;
  static constexpr int kCache = kHeads * kRowBytes;
  static constexpr int kWeights = kCache + kStages * kPositions * kRowBytes;
  static constexpr int kTileMaxima = kWeights + kHeads * kWeightStride * 2;
  static constexpr int kMaxima = kTileMaxima + kScoreWarps * kHeads * 4;
  static constexpr int kCorrections = kMaxima + 2 * kHeads * 4;
  static constexpr int kScales = kCorrections + kHeads * 4;
  static constexpr int kSharedBytes = kScales + kHeads * 4;
};

/// Begins to bring piece `i` of this thread's of a tile of binary16s to shared memory.
template <typename Tile>
__device__ void LoadPiece(const std::byte* from, int i, uint32_t to) {
  constexpr int kThreadsPerRow = kThreads / Tile::kPositions;
  const int row = static_cast<int>(threadIdx.x) / kThreadsPerRow;
  const int piece = static_cast<int>(threadIdx.x) % kThreadsPerRow + i * kThreadsPerRow;
  if (from == nullptr) {
    StorePiece(PieceAt(to, row, piece), uint4{});
  } else {
    CopyAsync16(PieceAt(to, row, piece), from + piece * 16);
  }
}

/// Begins to bring kPositions cached rows to shared memory, of which this thread has a part of one:
/// that at `from`; null: zeros. Q8_0 is there when this returns.
template <typename Tile, DType kDType>
__device__ void LoadCache(const std::byte* from, uint32_t to) {
  constexpr int kThreadsPerRow = kThreads / Tile::kPositions;
  const int row = static_cast<int>(threadIdx.x) / kThreadsPerRow;
  const int part = static_cast<int>(threadIdx.x) % kThreadsPerRow;
  if (from == nullptr) {
    for (int p = part; p < kPieces; p += kThreadsPerRow) StorePiece(PieceAt(to, row, p), uint4{});
    return;
  }
  if constexpr (kDType == DType::kF16) {
#pragma unroll
    for (int p = part; p < kPieces; p += kThreadsPerRow) {
      CopyAsync16(PieceAt(to, row, p), from + p * 16);
    }
  } else {
    for (int b = part; b < kWidth / 32; b += kThreadsPerRow) {
      const auto* const halves = reinterpret_cast<const uint16_t*>(from + b * 34);
      uint16_t codes[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) codes[i] = halves[1 + i];
      const float d = __half2float(__ushort_as_half(halves[0]));
#pragma unroll
      for (int piece = 0; piece < 4; ++piece) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint16_t pair = codes[4 * piece + i];
          const __half2 value =
              __floats2half2_rn(d * static_cast<float>(static_cast<int8_t>(pair & 0xff)),
                                d * static_cast<float>(static_cast<int8_t>(pair >> 8)));
          words[i] = *reinterpret_cast<const uint32_t*>(&value);
        }
        StorePiece(PieceAt(to, row, 4 * b + piece), {words[0], words[1], words[2], words[3]});
      }
    }
  }
}

// As AttendF32Kernel (attend_f32.cu), with queries, cached values and softmax weights in binary16.
// Grid [rows * heads / kHeads, splits], block 256, one CTA a multiprocessor. Of a tile of
// positions, warp w first has scores of 16 heads, then columns [64 w, 64 w + 64) of all heads'
// sums; the totals are the sums of a column of ones. Shared memory: queries and kStages tiles of
// the cache. Bytes: the split's cache rows, once for each kHeads heads; FLOPs: 2 (576 + 512) a head
// and position. For cards before 8.0 it compiles (mma.cuh) and is not launched.
template <typename Tile, DType kDType>
__global__ void __launch_bounds__(kThreads, 1)
    AttendMmaKernel(AttentionBatch batch, KvGeometry kv) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kHeads = Tile::kHeads;
  constexpr int kPositions = Tile::kPositions;
  constexpr int kHeadTiles = Tile::kHeadTiles;
  LetNextBegin();
  WaitForEarlier();
  const int num_heads = static_cast<int>(batch.shape.num_heads);
  const int tiles_of_heads = (num_heads + kHeads - 1) / kHeads;
  const int64_t batch_row = blockIdx.x / tiles_of_heads;
  const int first_head = static_cast<int>(blockIdx.x % tiles_of_heads) * kHeads;
  const RowPlace place = batch.places[batch_row];
  const int split = AttentionSplit(place.position);
  const int first_position = static_cast<int>(blockIdx.y) * split;
  if (first_position > place.position) return;
  const int positions = min(split, place.position + 1 - first_position);
  const int num_tiles = (positions + kPositions - 1) / kPositions;

  const uint32_t base = SharedAddress(shared);
  const uint32_t queries = base + Tile::kQueries;
  const auto cache = [base](int stage) {
    return base + Tile::kCache + static_cast<uint32_t>(stage) * kPositions * kRowBytes;
  };
  __half* const weights = reinterpret_cast<__half*>(shared + Tile::kWeights);
  float* const tile_maxima = reinterpret_cast<float*>(shared + Tile::kTileMaxima);
  float* const maxima = reinterpret_cast<float*>(shared + Tile::kMaxima);
  float* const corrections = reinterpret_cast<float*>(shared + Tile::kCorrections);
  float* const scales = reinterpret_cast<float*>(shared + Tile::kScales);
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid % 32;
  const int warp = tid / 32;

  const int64_t first_query = batch_row * num_heads + first_head;
  for (int i = tid; i < kHeads * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const uint32_t at = PieceAt(queries, row, piece);
    if (first_head + row < num_heads) {
      CopyAsync16(at, static_cast<const std::byte*>(batch.queries) +
                          (first_query + row) * kRowBytes + piece * 16);
    } else {
      StorePiece(at, uint4{});
    }
  }
  if (tid < kHeads) {
    maxima[tid] = -INFINITY;
    scales[tid] = first_head + tid < num_heads ? batch.score_scales[first_query + tid] : 0;
  }
  // Copies go between the products of queries and keys, which would wait behind all of them.
  constexpr bool kSpreadsLoads = Tile::kStages == 2 && kDType == DType::kF16;
  constexpr int kThreadPieces = kPieces * kPositions / kThreads;
  // A thread's row of a tile is looked up a tile ahead.
  const auto row_of = [&](int tile) -> const std::byte* {
    const int position = tile * kPositions + tid / (kThreads / kPositions);
    return position < positions ? KvRowAt(batch.blocks, kv, place, first_position + position)
                                : nullptr;
  };
  const std::byte* next_row = row_of(0);
  const auto load = [&](int tile) {
    LoadCache<Tile, kDType>(next_row, cache(tile % Tile::kStages));
    CommitCopies();
    next_row = row_of(tile + 1);
  };
  if constexpr (Tile::kStages == 2) load(0);

  // Where this warp's scores stand.
  const int head_tile = warp / Tile::kScoreWarps;
  const int score_column = warp % Tile::kScoreWarps * Tile::kScoreTiles * 8;
  const int score_rows[2] = {head_tile * 16 + lane / 4, head_tile * 16 + lane / 4 + 8};

  // Offsets of four pieces of 16 columns in eight of 8, see PieceAt: all rows that a lane gives the
  // address of have the same place in a run of 8.
  uint32_t a_pieces[4], b_pieces[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a_pieces[i] = static_cast<uint32_t>((2 * i + lane / 16) ^ lane % 8) << 4;
    b_pieces[i] = static_cast<uint32_t>((2 * i + lane / 8 % 2) ^ lane % 8) << 4;
  }

  float sums[kHeadTiles][8][4] = {};
  float totals[4] = {};  // of head tile `warp`, where there is one
  for (int tile = 0; tile < num_tiles; ++tile) {
    if constexpr (Tile::kStages == 1) {
      if (tile > 0) __syncthreads();  // nobody reads the tile before any more
      load(tile);
    }
    WaitForCopies<0>();
    __syncthreads();
    const bool loads = Tile::kStages == 2 && tile + 1 < num_tiles;
    if (loads && !kSpreadsLoads) load(tile + 1);
    const uint32_t next_cache = cache((tile + 1) % Tile::kStages);
    const uint32_t keys = cache(tile % Tile::kStages);

    float scores[Tile::kScoreTiles][4] = {};
    const uint32_t a_row = queries + static_cast<uint32_t>(head_tile * 16 + lane % 16) * kRowBytes;
    const uint32_t b_row =
        keys + static_cast<uint32_t>(score_column + lane % 8 +
                                     (Tile::kScoreTiles > 1 ? lane / 16 * 8 : 0)) *
                   kRowBytes;
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      constexpr int kSteps = kWidth / 16;
      if (kSpreadsLoads && k * kThreadPieces / kSteps != (k + 1) * kThreadPieces / kSteps &&
          loads) {
        LoadPiece<Tile>(next_row, k * kThreadPieces / kSteps, next_cache);
      }
      const uint32_t eight = static_cast<uint32_t>(k / 4) * 128;
      uint32_t a[4];
      LoadMatrices(a_row + a_pieces[k % 4] + eight, a);
      if constexpr (Tile::kScoreTiles == 1) {
        uint32_t b[2];
        LoadMatrices(b_row + b_pieces[k % 4] + eight, b);
        MultiplyHalves(scores[0], a, b[0], b[1]);
      } else {
#pragma unroll
        for (int j = 0; j < Tile::kScoreTiles; j += 2) {
          uint32_t b[4];
          LoadMatrices(b_row + b_pieces[k % 4] + eight + 8 * j * kRowBytes, b);
          MultiplyHalves(scores[j], a, b[0], b[1]);
          MultiplyHalves(scores[j + 1], a, b[2], b[3]);
        }
      }
    }

    if (loads && kSpreadsLoads) {
      CommitCopies();
      next_row = row_of(tile + 2);
    }

    // Scores beyond the row's position count nothing.
    const int count = positions - tile * kPositions;
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < Tile::kScoreTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = score_column + 8 * j + lane % 4 * 2 + i % 2;
        scores[j][i] = column < count ? scores[j][i] * scales[score_rows[i / 2]] : -INFINITY;
        largest[i / 2] = fmaxf(largest[i / 2], scores[j][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 1));
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 2));
      if (lane % 4 == 0) {
        tile_maxima[warp % Tile::kScoreWarps * kHeads + score_rows[i]] = largest[i];
      }
    }
    __syncthreads();
    const float* const old_maxima = maxima + tile % 2 * kHeads;
    float* const new_maxima = maxima + (tile + 1) % 2 * kHeads;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float old_max = old_maxima[score_rows[i]];
      float max = old_max;
#pragma unroll
      for (int w = 0; w < Tile::kScoreWarps; ++w) {
        max = fmaxf(max, tile_maxima[w * kHeads + score_rows[i]]);
      }
      if (warp % Tile::kScoreWarps == 0 && lane % 4 == 0) {
        new_maxima[score_rows[i]] = max;
        corrections[score_rows[i]] = exp2f(old_max - max);
      }
#pragma unroll
      for (int j = 0; j < Tile::kScoreTiles; ++j) {
        const int column = score_column + 8 * j + lane % 4 * 2;
        *reinterpret_cast<__half2*>(&weights[score_rows[i] * Tile::kWeightStride + column]) =
            __floats2half2_rn(exp2f(scores[j][2 * i] - max), exp2f(scores[j][2 * i + 1] - max));
      }
    }
    __syncthreads();

#pragma unroll
    for (int t = 0; t < kHeadTiles; ++t) {
      const float upper = corrections[t * 16 + lane / 4];
      const float lower = corrections[t * 16 + lane / 4 + 8];
      if (__any_sync(0xffffffffu, upper != 1 || lower != 1)) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sums[t][j][0] *= upper;
          sums[t][j][1] *= upper;
          sums[t][j][2] *= lower;
          sums[t][j][3] *= lower;
        }
        if (t == warp) {
          totals[0] *= upper;
          totals[2] *= lower;
        }
      }
    }
    const uint32_t values =
        keys + static_cast<uint32_t>(lane % 16) * kRowBytes + static_cast<uint32_t>(warp) * 128;
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      uint32_t a[kHeadTiles][4];
#pragma unroll
      for (int t = 0; t < kHeadTiles; ++t) {
        LoadMatrices(
            SharedAddress(
                &weights[(t * 16 + lane % 16) * Tile::kWeightStride + 16 * k + lane / 16 * 8]),
            a[t]);
        constexpr uint32_t kOnes = 0x3c003c00u;
        if (t == warp) MultiplyHalves(totals, a[t], kOnes, kOnes);
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        LoadTransposed(values + a_pieces[j / 2] + 16 * k * kRowBytes, b);
#pragma unroll
        for (int t = 0; t < kHeadTiles; ++t) {
          MultiplyHalves(sums[t][j], a[t], b[0], b[1]);
          MultiplyHalves(sums[t][j + 1], a[t], b[2], b[3]);
        }
      }
    }
  }

  const int64_t first_slot =
      (batch_row * batch.max_splits + static_cast<int64_t>(blockIdx.y)) * num_heads + first_head;
#pragma unroll
  for (int t = 0; t < kHeadTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = t * 16 + lane / 4 + 8 * half;
      if (first_head + head >= num_heads) continue;
      float* const out = batch.sums + (first_slot + head) * kLatent + warp * 64 + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        *reinterpret_cast<float2*>(out + 8 * j) = {sums[t][j][2 * half], sums[t][j][2 * half + 1]};
      }
      if (t == warp && lane % 4 == 0) {
        batch.maxima[first_slot + head] = maxima[num_tiles % 2 * kHeads + head];
        batch.totals[first_slot + head] = totals[2 * half];
      }
    }
  }
}

template <typename Tile>
absl::Status LaunchTile(const CudaStream& stream, const AttentionBatch& batch) {
  const auto kernel = batch.kv.dtype == DType::kF16 ? AttendMmaKernel<Tile, DType::kF16>
                                                    : AttendMmaKernel<Tile, DType::kQ8_0>;
  CARAVAN_CHECK(Tile::kSharedBytes <= stream.device().max_shared_bytes());
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes));
  const dim3 grid(batch.num_rows * CeilDiv(batch.shape.num_heads, int64_t{Tile::kHeads}),
                  batch.max_splits);
  const KvGeometry geometry = {batch.kv.block_tokens, DTypeBytes(batch.kv.dtype, kWidth),
                               batch.block_offset};
  return LaunchOverlapped(stream, "AttendMmaKernel", kernel, grid, kThreads, Tile::kSharedBytes,
                          batch, geometry);
}

// By the shared memory of the card: 8.0 and 9.0, or less. A tile's positions are part of the order
// of sums, so they are one number on one card; its heads and stages are not.
using LargeTile = MmaTile<64, 64, 2>;
using NarrowTile = MmaTile<16, 64, 2>;
using SmallTile = MmaTile<32, 32, 1>;
using SmallTwoStageTile = MmaTile<32, 32, 2>;

}  // namespace

absl::Status LaunchAttendMma(const CudaStream& stream, const AttentionBatch& batch) {
  CARAVAN_CHECK(batch.shape.kv_lora_rank == kLatent && batch.shape.kv_width() == kWidth);
  const CudaDevice& device = stream.device();
  if (device.max_shared_bytes() >= LargeTile::kSharedBytes) {
    // Few heads at a time keep more multiprocessors busy, many read the cache less often.
    const int64_t ctas = batch.num_rows * batch.max_splits *
                         CeilDiv(batch.shape.num_heads, int64_t{LargeTile::kHeads});
    if (batch.shape.num_heads <= 16 || ctas < device.num_multiprocessors() / 2) {
      return LaunchTile<NarrowTile>(stream, batch);
    }
#ifdef CARAVAN_HAS_WGMMA
    if (device.compute_capability() == 90) return LaunchAttendWgmma(stream, batch);
#endif
    return LaunchTile<LargeTile>(stream, batch);
  }
  return device.max_shared_bytes() >= SmallTwoStageTile::kSharedBytes
             ? LaunchTile<SmallTwoStageTile>(stream, batch)
             : LaunchTile<SmallTile>(stream, batch);
}

}  // namespace caravan
