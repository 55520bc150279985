#ifndef CARAVAN_KERNELS_CPU_CPU_BACKEND_H_
#define CARAVAN_KERNELS_CPU_CPU_BACKEND_H_

// The backend that runs on any x86 or other CPU: threaded, and vectorised where the CPU allows.
// Results do not depend, to the bit, on num_threads, nor on the rows beside a row; they do on the
// instruction set. Arithmetic is in float32. Owns its threads and its scratch memory, which is
// bounded by the shapes: nothing grows with the context, and nothing is allocated in a steady
// state.

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

struct CpuOptions {
  int num_threads = 1;  // the calling one included
  CpuIsa isa = CpuIsa::kAuto;
};

/// Errors: InvalidArgument - num_threads is not in [1, 1024].
///         FailedPrecondition - this CPU lacks `isa`.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_CPU_BACKEND_H_
