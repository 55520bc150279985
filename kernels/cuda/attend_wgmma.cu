// Attention over the compressed cache on Hopper's tensor cores: what attend_mma.cu does for many
// heads at a time, to the bit, by products of warp groups. Compiled for 9.0a alone.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/kv_address.cuh"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace caravan {
namespace {

constexpr int kLatent = 512;
constexpr int kWidth = 576;
constexpr int kThreads = 256;
constexpr int kGroupThreads = 128;
constexpr int kHeads = 64;
constexpr int kPositions = 64;  // of a tile: of a step of the online softmax
constexpr int kPanels = kWidth / 64;
constexpr int kPanelBytes = 64 * 128;
constexpr int kTileBytes = kPanels * kPanelBytes;

// Offsets in shared memory.
constexpr int kQueries = 0;
constexpr int kCache = kTileBytes;  // two tiles
constexpr int kWeights = kCache + 2 * kTileBytes;
constexpr int kCorrections = kWeights + kPanelBytes;
constexpr int kRows = kCorrections + kHeads * 4;  // where a tile's cached rows lie
constexpr int kSharedBytes = kRows + kPositions * 8;

/// Barriers between the two groups, or of the second alone.
enum Barrier { kWeightsThere = 1, kTileThere, kTileRead, kRowsThere };
__device__ inline void Meet(Barrier barrier, int threads = kThreads) {
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(threads) : "memory");
}
__device__ inline void Arrive(Barrier barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(barrier)), "r"(kThreads) : "memory");
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Two codes of Q8_0, bytes `first` and the next of `bytes` (each 128 more), times d.
template <int kFirst>
__device__ inline uint32_t TwoValues(uint32_t bytes, __half2 d) {
  constexpr uint32_t kSelector = 0x5040 | kFirst | (kFirst + 1) << 8;
  const uint32_t bits = __byte_perm(bytes, 0x64646464u, kSelector);  // 1024 + byte
  const __half2 codes =
      __hsub2(*reinterpret_cast<const __half2*>(&bits), __half2half2(__ushort_as_half(0x6480)));
  const __half2 values = __hmul2(codes, d);
  return *reinterpret_cast<const uint32_t*>(&values);
}

/// Stores 32 values of Q8_0 as four pieces. words: of codes.
__device__ inline void StoreBlock(const uint32_t (&words)[8], uint32_t d_bits, unsigned char* tile,
                                  int row, int block) {
  const __half2 d = __half2half2(__ushort_as_half(static_cast<unsigned short>(d_bits)));
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const uint32_t first = words[2 * p] ^ 0x80808080u, second = words[2 * p + 1] ^ 0x80808080u;
    *reinterpret_cast<uint4*>(tile + block / 2 * kPanelBytes + PanelPlace(row, block % 2 * 4 + p)) =
        make_uint4(TwoValues<0>(first, d), TwoValues<2>(first, d), TwoValues<0>(second, d),
                   TwoValues<2>(second, d));
  }
}

/// Brings a tile's rows to shared memory, or begins to; null ones are zeros. thread: of 128.
template <DType kDType>
__device__ inline void LoadTile(const std::byte* const* rows, const void* somewhere, int thread,
                                unsigned char* tile) {
  if constexpr (kDType == DType::kF16) {
    const int piece = thread % 8;
#pragma unroll
    for (int r = 0; r < kPositions; r += kGroupThreads / 8) {
      const int row = r + thread / 8;
      const std::byte* const from = rows[row];
      const bool there = from != nullptr;
      const std::byte* const at =
          there ? from + piece * 16 : static_cast<const std::byte*>(somewhere);
      unsigned char* const to = tile + PanelPlace(row, piece);
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        CopyAhead(to + p * kPanelBytes, at + (there ? p * 128 : 0), there);
      }
    }
    CommitCopies();
  } else {
    // Two blocks of 34 bytes make 17 words.
    constexpr int kPairs = kWidth / 64;
    for (int i = thread; i < kPositions * kPairs; i += kGroupThreads) {
      const int row = i / kPairs, pair = i % kPairs;
      uint32_t words[17] = {};
      if (rows[row] != nullptr) {
        const auto* const from = reinterpret_cast<const uint32_t*>(rows[row] + pair * 68);
#pragma unroll
        for (int w = 0; w < 17; ++w) words[w] = from[w];
      }
      uint32_t first[8], second[8];
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        first[w] = __funnelshift_r(words[w], words[w + 1], 16);
        second[w] = words[9 + w];
      }
      StoreBlock(first, words[0] & 0xffff, tile, row, 2 * pair);
      StoreBlock(second, words[8] >> 16, tile, row, 2 * pair + 1);
    }
  }
}

/// sums [64 heads, 256 columns] *= corrections of the thread's rows, then += weights times the
/// tile's latents from panel `first_panel` on, to be waited for.
__device__ inline void BeginSums(float (&sums)[4][32], float upper, float lower,
                                 const uint32_t (&weights)[4][4], uint32_t tile, int first_panel) {
#pragma unroll
  for (int t = 0; t < 4; ++t) Settle(sums[t]);
  if (__any_sync(0xffffffffu, upper != 1 || lower != 1)) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
        sums[t][i] *= upper;
        sums[t][i + 1] *= upper;
        sums[t][i + 2] *= lower;
        sums[t][i + 3] *= lower;
      }
    }
  }
  BeginProducts();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      BeginByColumns(
          sums[t], weights[k],
          PanelMatrix(tile + static_cast<uint32_t>((first_panel + t) * kPanelBytes + k * 16 * 128),
                      kPanelBytes));
    }
  }
  CommitProducts();
}

#endif

// As AttendMmaKernel (attend_mma.cu). Grid [rows * heads / 64, splits], block 256: two groups of
// 128, each with half the latent columns of all sums. The first has the products of queries and
// keys and the softmax, whose weights it shows to the second; the second brings the tiles. A tile's
// sums and the next one's scores follow each other on the tensor cores without a pause; the next
// tile is on its way from when the sums of the one before it are done. Shared memory: 225 KiB:
// queries, two tiles, weights. Bytes: the split's cache rows, once for each 64 heads; FLOPs: 2
// (576 + 512) a head and position.
template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1)
    AttendWgmmaKernel(AttentionBatch batch, KvGeometry kv) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char shared[];
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
  const int tid = static_cast<int>(threadIdx.x);
  const int group = tid / kGroupThreads, thread = tid % kGroupThreads;
  const int warp = thread / 32, lane = tid % 32;
  const uint32_t base = SharedAddress(shared);
  auto* const corrections = reinterpret_cast<float*>(shared + kCorrections);
  auto* const rows = reinterpret_cast<const std::byte**>(shared + kRows);
  const int64_t first_query = batch_row * num_heads + first_head;

  for (int i = tid; i < kHeads * kWidth / 8; i += kThreads) {
    const int row = i / (kWidth / 8), piece = i % (kWidth / 8);
    const bool there = first_head + row < num_heads;
    CopyAhead(shared + kQueries + piece / 8 * kPanelBytes + PanelPlace(row, piece % 8),
              static_cast<const std::byte*>(batch.queries) +
                  (first_query + (there ? row : 0)) * kWidth * 2 + piece * 16,
              there);
  }
  CommitCopies();
  WaitForCopies<0>();
  ShowToProducts();
  __syncthreads();

  float sums[4][32] = {};  // of columns 256 group + 64 t
  const int upper_head = 16 * warp + lane / 4, lower_head = upper_head + 8;
  const int64_t first_slot =
      (batch_row * batch.max_splits + static_cast<int64_t>(blockIdx.y)) * num_heads + first_head;
  if (group == 0) {
    const auto scale_of = [&](int head) {
      return first_head + head < num_heads ? batch.score_scales[first_query + head] : 0;
    };
    const float scales[2] = {scale_of(upper_head), scale_of(lower_head)};
    float maxima[2] = {-INFINITY, -INFINITY};
    float totals[4] = {};
    float scores[32] = {};
    const auto keys_of = [base](int tile) {
      return base + kCache + static_cast<uint32_t>(tile % 2 * kTileBytes);
    };
    const auto begin_scores = [&](int tile) {
      Meet(kTileThere);
      BeginProducts();
#pragma unroll
      for (int k = 0; k < kWidth / 16; ++k) {
        const auto at = static_cast<uint32_t>(k / 4 * kPanelBytes + k % 4 * 32);
        BeginRowsByRows(scores, PanelMatrix(base + kQueries + at, 0),
                        PanelMatrix(keys_of(tile) + at, 0), k > 0);
      }
      CommitProducts();
    };
    const auto begin_sums = [&](int tile) {
      Settle(scores);
      // Scores beyond the row's position count nothing.
      const int count = positions - tile * kPositions;
      float scaled[32];
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        scaled[i] = column < count ? scores[i] * scales[i / 2 % 2] : -INFINITY;
        largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], scaled[i]);
      }
      float corrected[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 1));
        largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 2));
        const float max = fmaxf(maxima[i], largest[i]);
        corrected[i] = exp2f(maxima[i] - max);
        maxima[i] = max;
      }
      uint32_t weights[4][4];
#pragma unroll
      for (int i = 0; i < 32; i += 2) {
        const float max = maxima[i / 2 % 2];
        const __half2 two = __floats2half2_rn(exp2f(scaled[i] - max), exp2f(scaled[i + 1] - max));
        weights[i / 8][i / 2 % 4] = *reinterpret_cast<const uint32_t*>(&two);
        *reinterpret_cast<__half2*>(shared + kWeights +
                                    PanelPlace(i / 2 % 2 == 0 ? upper_head : lower_head, i / 4) +
                                    lane % 4 * 4) = two;
      }
      if (lane % 4 == 0) {
        corrections[upper_head] = corrected[0];
        corrections[lower_head] = corrected[1];
      }
      Arrive(kWeightsThere);
      totals[0] *= corrected[0];
      totals[2] *= corrected[1];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        constexpr uint32_t kOnes = 0x3c003c00u;
        MultiplyHalves(totals, weights[k], kOnes, kOnes);
      }
      BeginSums(sums, corrected[0], corrected[1], weights, keys_of(tile), 0);
    };
    begin_scores(0);
    WaitForProducts<0>();
    for (int tile = 0; tile + 1 < num_tiles; ++tile) {
      begin_sums(tile);
      begin_scores(tile + 1);
      WaitForProducts<1>();
      Arrive(kTileRead);
      WaitForProducts<0>();
    }
    begin_sums(num_tiles - 1);
    WaitForProducts<0>();
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = i == 0 ? upper_head : lower_head;
        if (first_head + head >= num_heads) continue;
        batch.maxima[first_slot + head] = maxima[i];
        batch.totals[first_slot + head] = totals[2 * i];
      }
    }
  } else {
    const auto find_rows = [&](int tile) {
      const int position = tile * kPositions + thread;
      if (thread < kPositions) {
        rows[thread] = position < positions
                           ? KvRowAt(batch.blocks, kv, place, first_position + position)
                           : nullptr;
      }
    };
    const auto load = [&](int tile) {
      find_rows(tile);
      Meet(kRowsThere, kGroupThreads);
      LoadTile<kDType>(rows, batch.queries, thread, shared + kCache + tile % 2 * kTileBytes);
      Meet(kRowsThere, kGroupThreads);  // before they change
    };
    load(0);
    WaitForCopies<0>();
    ShowToProducts();
    Arrive(kTileThere);
    if (num_tiles > 1) load(1);
    for (int tile = 0; tile < num_tiles; ++tile) {
      const uint32_t values = base + kCache + static_cast<uint32_t>(tile % 2 * kTileBytes);
      Meet(kWeightsThere);
      uint32_t weights[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        LoadMatrices(base + kWeights + PanelPlace(16 * warp + lane % 16, 2 * k + lane / 16),
                     weights[k]);
      }
      BeginSums(sums, corrections[upper_head], corrections[lower_head], weights, values, 4);
      if (tile + 1 < num_tiles) {
        WaitForCopies<0>();
        ShowToProducts();
        Arrive(kTileThere);
      }
      WaitForProducts<0>();
      if (tile + 1 < num_tiles) Meet(kTileRead);
      if (tile + 2 < num_tiles) load(tile + 2);
    }
  }

#pragma unroll
  for (int t = 0; t < 4; ++t) Settle(sums[t]);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = i == 0 ? upper_head : lower_head;
    if (first_head + head >= num_heads) continue;
    float* const out = batch.sums + (first_slot + head) * kLatent + group * 256 + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        *reinterpret_cast<float2*>(out + 64 * t + 8 * j) = {sums[t][4 * j + 2 * i],
                                                            sums[t][4 * j + 2 * i + 1]};
      }
    }
  }
#endif
}

}  // namespace

absl::Status LaunchAttendWgmma(const CudaStream& stream, const AttentionBatch& batch) {
  const auto kernel = batch.kv.dtype == DType::kF16 ? AttendWgmmaKernel<DType::kF16>
                                                    : AttendWgmmaKernel<DType::kQ8_0>;
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const dim3 grid(batch.num_rows * CeilDiv(batch.shape.num_heads, int64_t{kHeads}),
                  batch.max_splits);
  const KvGeometry geometry = {batch.kv.block_tokens, DTypeBytes(batch.kv.dtype, kWidth),
                               batch.block_offset};
  return LaunchOverlapped(stream, "AttendWgmmaKernel", kernel, grid, kThreads, kSharedBytes, batch,
                          geometry);
}

}  // namespace caravan
