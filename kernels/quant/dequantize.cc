#include "kernels/quant/dequantize.h"

#include <cstring>

#include "base/check.h"
#include "kernels/quant/blocks.h"

namespace caravan {
namespace {

// Code and scale take at most 12 bits beside the 11 of d, so every product below is exact in float,
// and the difference is the only operation that may round. All are multiples of 2^-24 below 2^28,
// so that in double the difference is exact too.
template <typename Block, typename Real>
void DequantizeBlocks(const std::byte* row, int64_t n, Real* out) {
  for (int64_t first = 0; first < n; first += Block::kValues, row += sizeof(Block)) {
    Block block;
    std::memcpy(&block, row, sizeof(block));
    for (int i = 0; i < Block::kValues; ++i) {
      const SubScale sub = block.Sub(i / Block::kSubValues);
      const Real scale = static_cast<Real>(block.D()) * static_cast<Real>(sub.scale);
      const Real min = static_cast<Real>(block.Dmin()) * static_cast<Real>(sub.min);
      out[first + i] = scale * static_cast<Real>(block.Code(i)) - min;
    }
  }
}

template <typename Stored, typename Real, typename Convert>
void ConvertEach(const std::byte* row, int64_t n, Real* out, Convert convert) {
  for (int64_t i = 0; i < n; ++i) {
    Stored stored;
    std::memcpy(&stored, row + i * static_cast<int64_t>(sizeof(stored)), sizeof(stored));
    out[i] = convert(stored);
  }
}

template <typename Real>
void Dequantize(DType dtype, const std::byte* row, int64_t n, Real* out) {
  CARAVAN_CHECK(n % BlockOf(dtype).values == 0);
  switch (dtype) {
    case DType::kF32:
      return ConvertEach<float>(row, n, out, [](float value) { return value; });
    case DType::kF16:
      return ConvertEach<uint16_t>(row, n, out, Float16ToFloat);
    case DType::kBF16:
      return ConvertEach<uint16_t>(row, n, out, BFloat16ToFloat);
    case DType::kF8E4M3:
      return ConvertEach<uint8_t>(row, n, out, Float8E4M3ToFloat);
    default:
      break;
  }
  const bool is_block = VisitBlock(
      dtype, [&]<typename Block>(BlockTag<Block>) { DequantizeBlocks<Block>(row, n, out); });
  CARAVAN_CHECK(is_block && "not a weight's dtype");
}

}  // namespace

void DequantizeRow(DType dtype, const std::byte* row, int64_t n, float* out) {
  Dequantize(dtype, row, n, out);
}

void DequantizeRow(DType dtype, const std::byte* row, int64_t n, double* out) {
  Dequantize(dtype, row, n, out);
}

}  // namespace caravan
