#include "kernels/cpu/row_ops.h"

#include "absl/status/status.h"

namespace caravan {
namespace {

bool CpuHasAvx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
         __builtin_cpu_supports("f16c") != 0;
#else
  return false;
#endif
}

bool CpuHasAvx512() {
#if defined(__x86_64__)
  return CpuHasAvx2() && __builtin_cpu_supports("avx512f") != 0 &&
         __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512vnni") != 0;
#else
  return false;
#endif
}

/// Null where the build has no AVX-512.
const RowOps* Avx512RowOps() {
  if (Avx512WeightedSums() == nullptr) return nullptr;
  static const RowOps ops = [] {
    RowOps table = *Avx2RowOps();
    table.isa = CpuIsa::kAvx512;
    table.name = "avx512";
    table.weighted_sums = Avx512WeightedSums();
    return table;
  }();
  return &ops;
}

}  // namespace

absl::StatusOr<const RowOps*> RowOpsFor(CpuIsa isa) {
  const RowOps* avx2 = CpuHasAvx2() ? Avx2RowOps() : nullptr;
  const RowOps* avx512 = CpuHasAvx512() ? Avx512RowOps() : nullptr;
  switch (isa) {
    case CpuIsa::kAuto:
      return avx512 != nullptr ? avx512 : avx2 != nullptr ? avx2 : &PortableRowOps();
    case CpuIsa::kPortable:
      return &PortableRowOps();
    case CpuIsa::kAvx2:
      if (avx2 != nullptr) return avx2;
      return absl::FailedPreconditionError("this CPU lacks AVX2, FMA or F16C");
    case CpuIsa::kAvx512:
      if (avx512 != nullptr) return avx512;
      return absl::FailedPreconditionError("this CPU lacks AVX-512 (F, BW, DQ, VL) or its VNNI");
  }
  return absl::InvalidArgumentError("unknown instruction set");
}

}  // namespace caravan
