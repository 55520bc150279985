#ifndef CARAVAN_MODEL_PACK_PACK_TYPES_H_
#define CARAVAN_MODEL_PACK_PACK_TYPES_H_

// In which format each tensor of a packed model is stored.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/dtype.h"
#include "model/tensor_source.h"
#include "model/tensor_table.h"

namespace caravan {

/// What a user asks for. nullopt: each tensor stays in the format that it has.
struct PackTypes {
  std::optional<DType> experts;  // routed experts
  std::optional<DType> dense;    // all other matrices but the router
};

/// "q4_K", "Q8_0", "fp8", "bf16", "f16", "f32" or "keep", in any case.
/// Errors: InvalidArgument - no such format, or one that nothing is packed to.
absl::StatusOr<std::optional<DType>> ParsePackType(absl::string_view name);

/// "experts Q4_K, dense keep".
std::string DescribePackTypes(const PackTypes& types);

/// "8bit", "4bit" or "2bit". Errors: InvalidArgument - no such preset.
absl::StatusOr<PackTypes> PackPreset(absl::string_view name);

/// All matrices in the format of so many bits a weight, its blocks' scales among them, within 0.05:
/// 2.6 (q2_K), 3.4 (q3_K), 4.5 (q4_K, not q4_0, which has as many), 5.5 (q5_K), 6.6 (q6_K), 8
/// (fp8), 8.5 (q8_0), 16 (bf16, not f16) or 32 (f32). Errors: InvalidArgument - no format has so
/// many; names those that there are.
absl::StatusOr<PackTypes> PackTypesOfBits(double bits);

/// How `spec`'s tensor is stored, `source` being what there is of it now: as a stage holds it
/// (LoadedInfo), in the format that `types` asks for. What departs from `types`: the router stays
/// as it is; kv_b_proj, whose error every attention score bears, gets 8 bits or more; a matrix
/// whose columns are no multiple of the format's block is Q8_0, or BF16.
TensorInfo PackedInfo(const PackTypes& types, const TensorSpec& spec, const TensorInfo& source);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACK_TYPES_H_
