// Products with weights of single values: f32, f16, bf16, FP8.

#include <cuda_bf16.h>

#include "kernels/cuda/float_product.h"
#include "kernels/cuda/product_pass.cuh"
#include "kernels/matrix.h"

namespace caravan {
namespace {

// Each format: a lane's eight rows of one column as they lie in memory, and as floats.

struct CudaF32 {
  static constexpr int kBytes = 4;
  struct Raw {
    uint4 words[2];
  };
  __device__ static Raw Load(const uint8_t* at) {
    const auto* words = reinterpret_cast<const uint4*>(at);
    return {{__ldcs(words), __ldcs(words + 1)}};
  }
  __device__ static void Decode(const Raw& raw, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      w[4 * i] = __uint_as_float(raw.words[i].x);
      w[4 * i + 1] = __uint_as_float(raw.words[i].y);
      w[4 * i + 2] = __uint_as_float(raw.words[i].z);
      w[4 * i + 3] = __uint_as_float(raw.words[i].w);
    }
  }
};

struct HalfWords {
  static constexpr int kBytes = 2;
  struct Raw {
    uint4 words;
  };
  __device__ static Raw Load(const uint8_t* at) {
    return {__ldcs(reinterpret_cast<const uint4*>(at))};
  }
};

struct CudaF16 : HalfWords {
  __device__ static void Decode(const Raw& raw, float (&w)[8]) {
    const uint32_t words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = HalvesToFloats(words[i]);
      w[2 * i] = two.x;
      w[2 * i + 1] = two.y;
    }
  }
};

struct CudaBF16 : HalfWords {
  __device__ static void Decode(const Raw& raw, float (&w)[8]) {
    const uint32_t words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = __uint_as_float(words[i] << 16);
      w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

struct CudaF8E4M3 {
  static constexpr int kBytes = 1;
  struct Raw {
    uint2 words;
  };
  __device__ static Raw Load(const uint8_t* at) {
    return {__ldcs(reinterpret_cast<const uint2*>(at))};
  }
  /// The bits of a code, moved to a binary16's places, are 2^-8 of its value: subnormals too.
  __device__ static void Decode(const Raw& raw, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = i < 2 ? raw.words.x : raw.words.y;
      // Bytes 2 (i % 2) and 2 (i % 2) + 1, each in the upper half of 16 bits.
      const uint32_t codes = __byte_perm(word, 0, i % 2 == 0 ? 0x1404 : 0x3424);
      const uint32_t magnitudes = codes & 0x7f007f00u;
      const uint32_t bits = (codes & 0x80008000u) | magnitudes >> 1;
      const float2 two = HalvesToFloats(bits);
      const float nan = __uint_as_float(0x7fc00000u);
      w[2 * i] = (magnitudes & 0xffffu) == 0x7f00u ? nan : __fmul_rn(two.x, 256.0f);
      w[2 * i + 1] = magnitudes >> 16 == 0x7f00u ? nan : __fmul_rn(two.y, 256.0f);
    }
  }
};

/// out[n, r] = sum over chunks of sum over columns c of w[r, c] * x[n, c], by fused multiply-add in
/// the order that product_args.h gives; FP8 weights are multiplied by their block's scale first.
///
/// Weights: tiles [num_tiles] of 16 rows (kTiled16). Activations: x_floats. Grid: passes x groups
/// of slots; a warp takes units as in BlockProduct, a lane eight rows of every 16th column, for T
/// rows of activations at a time. Shared memory: 64 T bytes a unit.
/// Reads each weight once for each T rows; 2 * 16 * cols operations a tile and row.
template <class Format, int T>
struct FloatProduct {
  // Loads in flight: 128 bytes a lane where its registers have room.
  static constexpr int kUnroll = T > 4                 ? 2
                                 : T > 1               ? 4
                                 : Format::kBytes == 1 ? 8
                                                       : 16 / Format::kBytes;

  /// Adds up the 16 lanes that have the same eight rows: each is left with one row's sum.
  __device__ static float SumLanes(float (&sums)[8], int lane) {
#pragma unroll
    for (int kept = 4, step = 16; kept > 0; kept /= 2, step /= 2) {
      const bool upper = (lane & step) != 0;
#pragma unroll
      for (int i = 0; i < kept; ++i) {
        const float sent = upper ? sums[i] : sums[kept + i];
        const float own = upper ? sums[kept + i] : sums[i];
        sums[i] = __fadd_rn(own, __shfl_xor_sync(kWholeWarp, sent, step));
      }
    }
    return __fadd_rn(sums[0], __shfl_xor_sync(kWholeWarp, sums[0], 2));
  }

  /// Rows first + [0, count) of the pass, 0 < count <= T.
  __device__ static void Run(const ProductArgs& args, const ProductPass& pass, int first, int count,
                             float* sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    const int units = args.slots * args.chunks;
    const int lane_column = lane / 2, half = lane % 2;
    const float* x[T];
#pragma unroll
    for (int t = 0; t < T; ++t) {
      x[t] =
          args.x_floats + RowAt(args.in_rows, pass.first + first + min(t, count - 1)) * args.cols;
    }
    for (int unit = warp * units / warps; unit < (warp + 1) * units / warps; ++unit) {
      const int slot = unit / args.chunks, chunk = unit % args.chunks;
      const uint8_t* tile = TileOfSlot(args, pass, 1, slot, 0) + half * 8 * Format::kBytes;
      const float* scales = pass.scales[0];
      if (scales != nullptr) {
        const int row = (args.first_tile + static_cast<int>(blockIdx.y) * args.slots + slot) * 16;
        scales += min(row, args.rows - 1) / static_cast<int>(kFp8BlockSize) *
                  ((args.cols + kFp8BlockSize - 1) / kFp8BlockSize);
      }
      const int end = min((chunk + 1) * kChunkColumns, args.cols);
      float acc[T][8] = {};
      for (int column = chunk * kChunkColumns + lane_column; column - lane_column < end;
           column += 16 * kUnroll) {
        typename Format::Raw raw[kUnroll];
        float values[kUnroll][T];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int c = column + 16 * u;
          if (c < end) {
            raw[u] = Format::Load(tile + static_cast<int64_t>(c) * 16 * Format::kBytes);
#pragma unroll
            for (int t = 0; t < T; ++t) values[u][t] = __ldg(x[t] + c);
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int c = column + 16 * u;
          if (c >= end) continue;
          float w[8];
          Format::Decode(raw[u], w);
          if (Format::kBytes == 1 && scales != nullptr) {
            const float scale = __ldg(scales + c / static_cast<int>(kFp8BlockSize));
#pragma unroll
            for (float& weight : w) weight = __fmul_rn(weight, scale);
          }
#pragma unroll
          for (int t = 0; t < T; ++t) {
#pragma unroll
            for (int i = 0; i < 8; ++i) acc[t][i] = __fmaf_rn(w[i], values[u][t], acc[t][i]);
          }
        }
      }
      const int row = half * 8 + ((lane & 16) != 0 ? 4 : 0) + ((lane & 8) != 0 ? 2 : 0) +
                      ((lane & 4) != 0 ? 1 : 0);
#pragma unroll
      for (int t = 0; t < T; ++t) {
        const float sum = SumLanes(acc[t], lane);
        if ((lane & 2) == 0) sums[(unit * T + t) * 16 + row] = sum;
      }
    }
  }
};

template <class Format, int T>
__global__ void __launch_bounds__(32 * kMaxFloatWarps, T == 1 ? 2 : 1)
    FloatProductKernel(const __grid_constant__ ProductArgs args, int pass_rows) {
  extern __shared__ float sums[];
  ProductPass pass;
  if (!FindPass(args, pass_rows, pass)) return;
  for (int first = 0; first < pass.count; first += T) {
    const int count = min(T, pass.count - first);
    FloatProduct<Format, T>::Run(args, pass, first, count, sums);
    __syncthreads();
    StoreResults<16>(args, pass, first, count, sums, T);
    __syncthreads();
  }
}

template <class Format>
FloatProductKernels FloatKernels() {
  return {{reinterpret_cast<const void*>(FloatProductKernel<Format, 1>),
           reinterpret_cast<const void*>(FloatProductKernel<Format, 4>),
           reinterpret_cast<const void*>(FloatProductKernel<Format, 8>)}};
}

}  // namespace

FloatProductKernels FloatProductKernelsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return FloatKernels<CudaF32>();
    case DType::kF16:
      return FloatKernels<CudaF16>();
    case DType::kBF16:
      return FloatKernels<CudaBF16>();
    case DType::kF8E4M3:
      return FloatKernels<CudaF8E4M3>();
    default:
      return {};
  }
}

}  // namespace caravan
