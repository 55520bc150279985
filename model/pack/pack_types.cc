#include "model/pack/pack_types.h"

#include <array>
#include <cmath>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace caravan {
namespace {

constexpr std::array kPackable = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                  DType::kQ6_K, DType::kQ5_K, DType::kQ4_K, DType::kQ4_0,
                                  DType::kQ3_K, DType::kQ2_K};

double BitsOf(DType dtype) {
  const DTypeBlock block = BlockOf(dtype);
  return 8.0 * static_cast<double>(block.bytes) / static_cast<double>(block.values);
}

/// `dtype`, or the next best that divides rows of `cols` values.
DType Dividing(DType dtype, int64_t cols) {
  for (const DType candidate : {dtype, DType::kQ8_0}) {
    if (cols % BlockOf(candidate).values == 0) return candidate;
  }
  return DType::kBF16;
}

}  // namespace

absl::StatusOr<std::optional<DType>> ParsePackType(absl::string_view name) {
  if (absl::EqualsIgnoreCase(name, "keep")) return std::optional<DType>();
  if (absl::EqualsIgnoreCase(name, "fp8")) return std::optional(DType::kF8E4M3);
  const std::optional<DType> dtype = ParseDType(absl::AsciiStrToUpper(name));
  if (dtype.has_value() && absl::c_linear_search(kPackable, *dtype)) return dtype;
  std::string known = "keep, fp8";
  for (const DType each : kPackable) absl::StrAppend(&known, ", ", DTypeName(each));
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is no format to pack to; there are ", known));
}

std::string DescribePackTypes(const PackTypes& types) {
  const auto name = [](const std::optional<DType>& type) {
    return type.has_value() ? DTypeName(*type) : "keep";
  };
  return absl::StrCat("experts ", name(types.experts), ", dense ", name(types.dense));
}

absl::StatusOr<PackTypes> PackPreset(absl::string_view name) {
  if (name == "8bit") return PackTypes{DType::kQ8_0, DType::kQ8_0};
  if (name == "4bit") return PackTypes{DType::kQ4_K, DType::kQ8_0};
  if (name == "2bit") return PackTypes{DType::kQ2_K, DType::kQ8_0};
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is no preset; there are 8bit, 4bit and 2bit"));
}

absl::StatusOr<PackTypes> PackTypesOfBits(double bits) {
  std::string known;
  for (const DType each : {DType::kQ2_K, DType::kQ3_K, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K,
                           DType::kF8E4M3, DType::kQ8_0, DType::kBF16, DType::kF32}) {
    if (std::abs(BitsOf(each) - bits) < 0.05) return PackTypes{each, each};
    absl::StrAppendFormat(&known, "%s%.2g (%s)", known.empty() ? "" : ", ", BitsOf(each),
                          DTypeName(each));
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("no format has %g bits a weight; there are %s", bits, known));
}

TensorInfo PackedInfo(const PackTypes& types, const TensorSpec& spec, const TensorInfo& source) {
  TensorInfo info = LoadedInfo(spec, source);
  if (spec.tensor_class == TensorClass::kNorm) return info;
  const std::optional<DType> wanted =
      spec.tensor_class == TensorClass::kRoutedExpert ? types.experts : types.dense;
  if (wanted.has_value() && spec.tensor_class != TensorClass::kRouter) {
    info.dtype = IsKvB(spec) && BitsOf(*wanted) < 8 ? DType::kQ8_0 : *wanted;
    info.dtype = Dividing(info.dtype, spec.shape[1]);
  }
  return info;
}

}  // namespace caravan
