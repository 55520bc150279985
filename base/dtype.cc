#include "base/dtype.h"

#include "base/check.h"

namespace caravan {
namespace {

struct DTypeRow {
  DType dtype;
  absl::string_view name;
  int64_t bytes;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kF32, "F32", 4},        {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
    {DType::kF8E4M3, "F8_E4M3", 1}, {DType::kI32, "I32", 4},
};

const DTypeRow& Row(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row;
  }
  CARAVAN_CHECK(false);
  return kDTypes[0];
}

}  // namespace

int64_t DTypeBytes(DType dtype) { return Row(dtype).bytes; }

absl::string_view DTypeName(DType dtype) { return Row(dtype).name; }

std::optional<DType> ParseDType(absl::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace caravan
