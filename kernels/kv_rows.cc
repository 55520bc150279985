#include "kernels/kv_rows.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/int_math.h"
#include "kernels/quant/blocks.h"
#include "kernels/quant/quantize.h"

namespace caravan {
namespace {

constexpr uint16_t kFloat16NaN = 0x7e00;

void EncodeF16(const float* values, int64_t n, std::byte* row) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t half = FloatToFloat16(SaturateToFloat16(values[i]));
    std::memcpy(row + i * static_cast<int64_t>(sizeof(half)), &half, sizeof(half));
  }
}

void EncodeQ8_0(const float* values, int64_t n, std::byte* row) {
  if (QuantizeRow(DType::kQ8_0, values, n, nullptr, row).ok()) return;
  Q8_0Block block = {};
  block.d.SetBits(kFloat16NaN);
  for (int64_t i = 0; i < n; i += Q8_0Block::kValues) {
    std::memcpy(row + i / Q8_0Block::kValues * static_cast<int64_t>(sizeof(block)), &block,
                sizeof(block));
  }
}

}  // namespace

bool IsKvDType(DType dtype) {
  return std::find(std::begin(kKvDTypes), std::end(kKvDTypes), dtype) != std::end(kKvDTypes);
}

absl::Status CheckKvDType(const MlaShape& shape, DType dtype) {
  if (!IsKvDType(dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a KV cache of ", DTypeName(dtype), "; there are F32, F16 and Q8_0"));
  }
  const int64_t values = BlockOf(dtype).values;
  const auto refuse = [&](absl::string_view field, int64_t value) {
    return absl::InvalidArgumentError(absl::StrCat("a KV cache of ", DTypeName(dtype), " needs ",
                                                   field, " to be a multiple of ", values,
                                                   "; this model's is ", value));
  };
  if (shape.kv_lora_rank % values != 0) return refuse("kv_lora_rank", shape.kv_lora_rank);
  if (shape.qk_rope_head_dim % values != 0) {
    return refuse("qk_rope_head_dim", shape.qk_rope_head_dim);
  }
  return absl::OkStatus();
}

int64_t KvBytes(DType dtype, int64_t num_values) {
  return DTypeBytes(dtype, RoundUp(num_values, BlockOf(dtype).values));
}

void EncodeKvRow(DType dtype, const float* values, int64_t n, std::byte* row) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(row, values, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      return EncodeF16(values, n, row);
    case DType::kQ8_0:
      return EncodeQ8_0(values, n, row);
    default:
      CARAVAN_CHECK(false);
  }
}

}  // namespace caravan
