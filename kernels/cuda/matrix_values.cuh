#ifndef CARAVAN_KERNELS_CUDA_MATRIX_VALUES_CUH_
#define CARAVAN_KERNELS_CUDA_MATRIX_VALUES_CUH_

// Single values of a weight matrix on the device, in every format and either layout, as
// DequantizeRow gives them in float: for the rows of a table and for kv_b. The products of other
// matrices read whole lines instead.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "base/dtype.h"
#include "kernels/matrix.h"

namespace caravan {

/// One row's part of a block of a block format: byte i of the field that begins at kOffset of the
/// row's block. In a tile the field comes after kBefore bytes of each row, in pieces of kUnit bytes
/// (kernels/tiled/tile_layout.cc).
struct BlockBytes {
  const uint8_t* data;  // row-major: of the row's block; tiled: of the 16 rows' blocks
  int row_of_tile;      // -1: row-major

  template <int kOffset, int kBefore, int kUnit>
  __device__ int Byte(int i) const {
    if (row_of_tile < 0) return data[kOffset + i];
    return data[16 * kBefore + i / kUnit * 16 * kUnit + row_of_tile * kUnit + i % kUnit];
  }

  template <int kOffset, int kBefore>
  __device__ float Half() const {
    const int bits = Byte<kOffset, kBefore, 2>(0) | Byte<kOffset, kBefore, 2>(1) << 8;
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }

  /// Bits of value i in a plane of kBits a value (kernels/quant/blocks.h, Plane).
  template <int kOffset, int kBefore, int kBits, int kStride>
  __device__ int Plane(int i) const {
    constexpr int kFields = 8 / kBits;
    const int byte = Byte<kOffset, kBefore, 4>(i / (kStride * kFields) * kStride + i % kStride);
    return byte >> i / kStride % kFields * kBits & ((1 << kBits) - 1);
  }

  /// Scale (kMin: min) of sub-block s in Q4_K's and Q5_K's 12 bytes at 4 (blocks.h, SixBitScales).
  template <bool kMin>
  __device__ int SixBits(int s) const {
    const auto byte = [this](int i) { return Byte<4, 4, 1>(i); };
    if (s < 4) return byte(kMin ? 4 + s : s) & 63;
    return (byte(4 + s) >> (kMin ? 4 : 0) & 15) | byte(kMin ? s : s - 4) >> 6 << 4;
  }
};

/// scale * code - min, as DequantizeRow rounds it.
__device__ __forceinline__ float BlockValue(DType dtype, const BlockBytes& b, int i) {
  switch (dtype) {
    case DType::kQ4_0: {
      const int code = (b.Byte<2, 2, 4>(i % 16) >> i / 16 * 4 & 15) - 8;
      return b.Half<0, 0>() * static_cast<float>(code);
    }
    case DType::kQ8_0:
      return b.Half<0, 0>() * static_cast<float>(static_cast<int8_t>(b.Byte<2, 2, 4>(i)));
    case DType::kQ2_K: {
      const int scale = b.Byte<0, 4, 1>(i / 16);
      const int code = b.Plane<16, 20, 2, 32>(i);
      return b.Half<80, 0>() * static_cast<float>(scale & 15) * static_cast<float>(code) -
             b.Half<82, 2>() * static_cast<float>(scale >> 4);
    }
    case DType::kQ3_K: {
      const int s = i / 16;
      const int low = b.Byte<96, 2, 1>(s % 8) >> s / 8 * 4 & 15;
      const int high = b.Byte<96, 2, 1>(8 + s % 4) >> s / 4 * 2 & 3;
      const int code = (b.Plane<32, 46, 2, 32>(i) | b.Plane<0, 14, 1, 32>(i) << 2) - 4;
      return b.Half<108, 0>() * static_cast<float>((low | high << 4) - 32) *
             static_cast<float>(code);
    }
    case DType::kQ4_K: {
      const int code = b.Plane<16, 16, 4, 32>(i);
      return b.Half<0, 0>() * static_cast<float>(b.SixBits<false>(i / 32)) *
                 static_cast<float>(code) -
             b.Half<2, 2>() * static_cast<float>(b.SixBits<true>(i / 32));
    }
    case DType::kQ5_K: {
      const int code = b.Plane<48, 48, 4, 32>(i) | b.Plane<16, 16, 1, 32>(i) << 4;
      return b.Half<0, 0>() * static_cast<float>(b.SixBits<false>(i / 32)) *
                 static_cast<float>(code) -
             b.Half<2, 2>() * static_cast<float>(b.SixBits<true>(i / 32));
    }
    case DType::kQ6_K: {
      const int scale = static_cast<int8_t>(b.Byte<192, 2, 1>(i / 16));
      const int code = (b.Plane<0, 82, 4, 64>(i) | b.Plane<128, 18, 2, 32>(i) << 4) - 32;
      return b.Half<208, 0>() * static_cast<float>(scale) * static_cast<float>(code);
    }
    default:
      return 0;
  }
}

/// Values and bytes of a dtype's block (BlockOf, base/dtype.h).
__device__ __forceinline__ int2 DeviceBlockOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {1, 4};
    case DType::kF16:
    case DType::kBF16:
      return {1, 2};
    case DType::kF8E4M3:
      return {1, 1};
    case DType::kQ4_0:
      return {32, 18};
    case DType::kQ8_0:
      return {32, 34};
    case DType::kQ2_K:
      return {256, 84};
    case DType::kQ3_K:
      return {256, 110};
    case DType::kQ4_K:
      return {256, 144};
    case DType::kQ5_K:
      return {256, 176};
    case DType::kQ6_K:
      return {256, 210};
    default:
      return {1, 4};
  }
}

/// m[row][col]. dtype: m's; where the compiler knows it, little is left of this.
__device__ __forceinline__ float MatrixValue(const Matrix& m, DType dtype, int64_t row,
                                             int64_t col) {
  const bool tiled = m.layout == MatrixLayout::kTiled16;
  const int2 block = DeviceBlockOf(dtype);
  const int64_t row_bytes = m.cols / block.x * block.y;
  const auto* data = reinterpret_cast<const uint8_t*>(m.data);
  if (block.x > 1) {
    const int64_t index = col / block.x;
    const BlockBytes bytes =
        tiled ? BlockBytes{data + row / 16 * 16 * row_bytes + index * 16 * block.y,
                           static_cast<int>(row % 16)}
              : BlockBytes{data + row * row_bytes + index * block.y, -1};
    return BlockValue(dtype, bytes, static_cast<int>(col % block.x));
  }
  const int64_t at = tiled ? row / 16 * 16 * m.cols + col * 16 + row % 16 : row * m.cols + col;
  switch (dtype) {
    case DType::kF16:
      return __half2float(reinterpret_cast<const __half*>(data)[at]);
    case DType::kBF16:
      return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[at]);
    case DType::kF8E4M3: {
      const __half_raw half = __nv_cvt_fp8_to_halfraw(data[at], __NV_E4M3);
      const float value = __half2float(__half(half));  // exact
      if (m.scale_inv == nullptr) return value;
      return value * m.scale_inv[row / kFp8BlockSize * Fp8Blocks(m.cols) + col / kFp8BlockSize];
    }
    default:
      return reinterpret_cast<const float*>(data)[at];
  }
}

/// A format as a template's argument: one that kernels are made for of its own, or any other.
inline constexpr DType kAnyDType = DType::kI32;
template <DType kDType>
__device__ __forceinline__ float MatrixValueOf(const Matrix& m, int64_t row, int64_t col) {
  return MatrixValue(m, kDType == kAnyDType ? m.dtype : kDType, row, col);
}

/// A row of a matrix, to be read four values at a time.
template <DType kDType>
class RowOfFours {
 public:
  __device__ __forceinline__ RowOfFours(const Matrix& m, int64_t row) : m_(m), row_(row) {}
  /// Columns col .. col + 3, zeros past the end. col: a multiple of 4.
  __device__ __forceinline__ float4 At(int col) const {
    const auto value = [this](int64_t c) {
      return c < m_.cols ? MatrixValueOf<kDType>(m_, row_, c) : 0.0f;
    };
    return {value(col), value(col + 1), value(col + 2), value(col + 3)};
  }

 private:
  const Matrix& m_;
  const int64_t row_;
};

/// With neither branches nor conversions of integers.
template <>
class RowOfFours<DType::kQ8_0> {
 public:
  __device__ __forceinline__ RowOfFours(const Matrix& m, int64_t row) {
    const bool tiled = m.layout == MatrixLayout::kTiled16;
    const int of_tile = tiled ? static_cast<int>(row % 16) : 0;
    const int row_bytes = static_cast<int>(m.cols) / 32 * 34;
    const auto* const data = reinterpret_cast<const uint8_t*>(m.data) + (row - of_tile) * row_bytes;
    scales_ = data + 2 * of_tile;
    codes_ = data + (tiled ? 32 + 4 * of_tile : 2);
    block_step_ = tiled ? 16 * 34 : 34;
    code_step_ = tiled ? 16 : 1;
  }
  __device__ __forceinline__ float4 At(int col) const {
    const int block = col / 32 * block_step_;
    const auto* const codes =
        reinterpret_cast<const unsigned short*>(codes_ + block + col % 32 * code_step_);
    const float d = __half2float(*reinterpret_cast<const __half*>(scales_ + block));
    const uint32_t bytes = (codes[0] | static_cast<uint32_t>(codes[1]) << 16) ^ 0x80808080u;
    // 2^23 + 128 + code, by its bits.
    const auto value = [d](uint32_t bits) {
      return d * (__uint_as_float(bits) - (8388608.0f + 128.0f));
    };
    constexpr uint32_t kExponent = 0x4b000000u;
    return {
        value(__byte_perm(bytes, kExponent, 0x7540)), value(__byte_perm(bytes, kExponent, 0x7541)),
        value(__byte_perm(bytes, kExponent, 0x7542)), value(__byte_perm(bytes, kExponent, 0x7543))};
  }

 private:
  const uint8_t* scales_;  // of the row's first block
  const uint8_t* codes_;
  int block_step_;
  int code_step_;  // between columns, of four at a time
};

/// Calls visit.operator()<kDType>() with the format's own argument. kv_b is one of these as a rule.
template <typename Visit>
auto WithDType(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::kBF16:
      return visit.template operator()<DType::kBF16>();
    case DType::kF8E4M3:
      return visit.template operator()<DType::kF8E4M3>();
    case DType::kQ8_0:
      return visit.template operator()<DType::kQ8_0>();
    default:
      return visit.template operator()<kAnyDType>();
  }
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_MATRIX_VALUES_CUH_
