#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/int_math.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/kv_address.cuh"
#include "kernels/cuda/kv_ops.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/cuda/q8_0_fit.cuh"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

constexpr int kMaxPairs = 256;
constexpr int kRotatedHeads = 16;

/// Cosine and sine by which pair `i` turns at a position, times the amplitude. In double: in float,
/// position 100,000 would be off by 0.004.
__device__ float2 AngleOf(const float* inv_freq, float amplitude, int position, int i) {
  double sine, cosine;
  sincos(static_cast<double>(position) * inv_freq[i], &sine, &cosine);
  return {static_cast<float>(amplitude * cosine), static_cast<float>(amplitude * sine)};
}

__device__ float2 Turned(float2 pair, float2 angle) {
  return {pair.x * angle.x - pair.y * angle.y, pair.x * angle.y + pair.y * angle.x};
}

// Pair i of every head's rope part *= amplitude exp(i position inv_freq[i]) (RoFormer,
// arXiv:2104.09864, section 3.4.2). Grid [rows, heads / kRotatedHeads], block 256; shared memory: a
// cosine and a sine a pair. Bytes: 8 rope num_heads a row; 6 FLOPs a pair.
__global__ void RotateQueriesKernel(MlaShape shape, const float* inv_freq, float amplitude,
                                    const RowPlace* places, float* q) {
  __shared__ float2 angles[kMaxPairs];
  LetNextBegin();
  WaitForEarlier();
  const RowPlace place = places[blockIdx.x];
  const int pairs = static_cast<int>(shape.qk_rope_head_dim / 2);
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    angles[i] = AngleOf(inv_freq, amplitude, place.position, i);
  }
  __syncthreads();
  const int64_t head_dim = shape.qk_nope_head_dim + shape.qk_rope_head_dim;
  const int64_t first_head = int64_t{blockIdx.y} * kRotatedHeads;
  const int64_t heads = min(int64_t{kRotatedHeads}, shape.num_heads - first_head);
  float* const row =
      q + (place.row * shape.num_heads + first_head) * head_dim + shape.qk_nope_head_dim;
  for (int64_t i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
    float* const x = row + i / pairs * head_dim + i % pairs * 2;
    const float2 turned = Turned({x[0], x[1]}, angles[i % pairs]);
    x[0] = turned.x;
    x[1] = turned.y;
  }
}

__device__ void Store16(std::byte* at, uint16_t bits) { *reinterpret_cast<uint16_t*>(at) = bits; }

/// The binary16 that EncodeKvRow stores.
__device__ uint16_t SaturatedHalf(float value) {
  if (isnan(value))
    return static_cast<uint16_t>(0x7e00u | (__float_as_uint(value) >> 16 & 0x8000u));
  return __half_as_ushort(__float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f)));
}

// A cache row from one of kv_a: the latent normed, the rest turned, then stored in kDType. Grid
// [rows], block kRowThreads; shared memory: the row as floats. Bytes: 4 kv_width in, a cache row
// out; FLOPs: 5 a value, and for Q8_0 80 more (its fit).
template <DType kDType>
__global__ void __launch_bounds__(kRowThreads)
    WriteKvKernel(MlaShape shape, const float* inv_freq, float amplitude, const float* norm_weight,
                  float eps, const RowPlace* places, std::byte* const* blocks, KvGeometry kv,
                  const float* kv_a) {
  extern __shared__ float row[];
  __shared__ float partial[32];
  LetNextBegin();
  WaitForEarlier();
  const RowPlace place = places[blockIdx.x];
  const int latent = static_cast<int>(shape.kv_lora_rank);
  const int width = latent + static_cast<int>(shape.qk_rope_head_dim);
  const float* const from = kv_a + static_cast<int64_t>(place.row) * width;
  const float scale = InverseRms(from, latent, eps, partial);
  const int tid = static_cast<int>(threadIdx.x);
  bool finite = true;
  for (int i = tid; i < latent; i += kRowThreads) {
    row[i] = from[i] * scale * norm_weight[i];
    finite = finite && isfinite(row[i]);
  }
  for (int i = tid; i < (width - latent) / 2; i += kRowThreads) {
    const float* const pair = from + latent + 2 * i;
    const float2 turned =
        Turned({pair[0], pair[1]}, AngleOf(inv_freq, amplitude, place.position, i));
    row[latent + 2 * i] = turned.x;
    row[latent + 2 * i + 1] = turned.y;
    finite = finite && isfinite(turned.x) && isfinite(turned.y);
  }
  const bool broken = __syncthreads_or(!finite) != 0;
  std::byte* const to = KvRowAt(blocks, kv, place, place.position);
  if constexpr (kDType == DType::kQ8_0) {
    // A block of the format is one thread's.
    for (int block = tid; block < width / 32; block += kRowThreads) {
      std::byte* const at = to + block * 34;
      if (broken) {
        Store16(at, 0x7e00);
        for (int i = 0; i < 32; i += 2) Store16(at + 2 + i, 0);
        continue;
      }
      const Q8_0Fit fit = FitQ8_0(row + 32 * block);
      Store16(at, fit.d_bits);
      for (int i = 0; i < 32; i += 2) {
        const auto low = static_cast<uint8_t>(fit.Code(row[32 * block + i]));
        const auto high = static_cast<uint8_t>(fit.Code(row[32 * block + i + 1]));
        Store16(at + 2 + i, static_cast<uint16_t>(low | high << 8));
      }
    }
  } else {
    for (int i = tid; i < width; i += kRowThreads) {
      if constexpr (kDType == DType::kF32) {
        reinterpret_cast<float*>(to)[i] = row[i];
      } else {
        Store16(to + 2 * i, SaturatedHalf(row[i]));
      }
    }
  }
}

}  // namespace

absl::Status LaunchRotateQueries(const CudaStream& stream, const MlaShape& shape,
                                 const RopeTable& rope, const SequenceRowsView& rows, float* q) {
  CARAVAN_CHECK(2 * static_cast<int64_t>(rope.inv_freq.size()) == shape.qk_rope_head_dim);
  CARAVAN_CHECK(shape.qk_rope_head_dim <= 2 * kMaxPairs);
  if (rows.num_rows == 0) return absl::OkStatus();
  const dim3 grid(rows.num_rows, CeilDiv<int64_t>(shape.num_heads, kRotatedHeads));
  return LaunchOverlapped(stream, "RotateQueriesKernel", RotateQueriesKernel, grid, 256, 0, shape,
                          rope.inv_freq.data(), rope.amplitude, rows.places, q);
}

absl::Status LaunchWriteKv(const CudaStream& stream, const MlaShape& shape, const RopeTable& rope,
                           const float* norm_weight, float eps, const SequenceRowsView& rows,
                           const KvLayout& kv, const float* kv_a) {
  CARAVAN_CHECK(2 * static_cast<int64_t>(rope.inv_freq.size()) == shape.qk_rope_head_dim);
  CARAVAN_CHECK(CheckKvDType(shape, kv.dtype).ok());
  CARAVAN_CHECK(shape.kv_width() <= 8192);
  if (rows.num_rows == 0) return absl::OkStatus();
  const auto kernel = kv.dtype == DType::kF32   ? WriteKvKernel<DType::kF32>
                      : kv.dtype == DType::kF16 ? WriteKvKernel<DType::kF16>
                                                : WriteKvKernel<DType::kQ8_0>;
  const KvGeometry geometry = {kv.block_tokens, DTypeBytes(kv.dtype, shape.kv_width()),
                               rows.block_offset};
  return LaunchOverlapped(stream, "WriteKvKernel", kernel, rows.num_rows, kRowThreads,
                          shape.kv_width() * static_cast<int64_t>(sizeof(float)), shape,
                          rope.inv_freq.data(), rope.amplitude, norm_weight, eps, rows.places,
                          rows.blocks, geometry, kv_a);
}

}  // namespace caravan
