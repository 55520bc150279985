#include "kernels/cpu/tile_ops.h"

#include "absl/status/status.h"
#include "base/status_macros.h"

namespace caravan {

TileOps::MultiplyBlocks TileOps::MultiplierOf(DType dtype) const {
  switch (dtype) {
    case DType::kQ4_0:
      return multiply_q4_0;
    case DType::kQ8_0:
      return multiply_q8_0;
    case DType::kQ2_K:
      return multiply_q2_k;
    case DType::kQ3_K:
      return multiply_q3_k;
    case DType::kQ4_K:
      return multiply_q4_k;
    case DType::kQ5_K:
      return multiply_q5_k;
    case DType::kQ6_K:
      return multiply_q6_k;
    default:
      return nullptr;
  }
}

absl::StatusOr<const TileOps*> TileOpsFor(CpuIsa isa) {
  // The row operations' table says what this CPU has.
  CARAVAN_ASSIGN_OR_RETURN(const RowOps* rows, RowOpsFor(isa));
  switch (rows->isa) {
    case CpuIsa::kAvx512:
      return Avx512TileOps();
    case CpuIsa::kAvx2:
      return Avx2TileOps();
    default:
      return &PortableTileOps();
  }
}

}  // namespace caravan
