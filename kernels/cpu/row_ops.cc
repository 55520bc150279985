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

}  // namespace

absl::StatusOr<const RowOps*> RowOpsFor(CpuIsa isa) {
  const RowOps* avx2 = CpuHasAvx2() ? Avx2RowOps() : nullptr;
  switch (isa) {
    case CpuIsa::kAuto:
      return avx2 != nullptr ? avx2 : &PortableRowOps();
    case CpuIsa::kPortable:
      return &PortableRowOps();
    case CpuIsa::kAvx2:
      if (avx2 != nullptr) return avx2;
      return absl::FailedPreconditionError("this CPU lacks AVX2, FMA or F16C");
  }
  return absl::InvalidArgumentError("unknown instruction set");
}

}  // namespace caravan
