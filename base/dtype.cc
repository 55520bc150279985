#include "base/dtype.h"

#include "base/check.h"

namespace caravan {
namespace {

struct DTypeRow {
  DType dtype;
  absl::string_view name;
  DTypeBlock block;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kF32, "F32", {1, 4}},       {DType::kF16, "F16", {1, 2}},
    {DType::kBF16, "BF16", {1, 2}},     {DType::kF8E4M3, "F8_E4M3", {1, 1}},
    {DType::kI32, "I32", {1, 4}},       {DType::kQ4_0, "Q4_0", {32, 18}},
    {DType::kQ8_0, "Q8_0", {32, 34}},   {DType::kQ2_K, "Q2_K", {256, 84}},
    {DType::kQ3_K, "Q3_K", {256, 110}}, {DType::kQ4_K, "Q4_K", {256, 144}},
    {DType::kQ5_K, "Q5_K", {256, 176}}, {DType::kQ6_K, "Q6_K", {256, 210}},
};

const DTypeRow& Row(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row;
  }
  CARAVAN_CHECK(false);
  return kDTypes[0];
}

}  // namespace

DTypeBlock BlockOf(DType dtype) { return Row(dtype).block; }

int64_t DTypeBytes(DType dtype, int64_t count) {
  const DTypeBlock block = BlockOf(dtype);
  CARAVAN_CHECK(count % block.values == 0);
  return count / block.values * block.bytes;
}

absl::string_view DTypeName(DType dtype) { return Row(dtype).name; }

std::optional<DType> ParseDType(absl::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace caravan
