// OpenCard where there is no CUDA.

#include "absl/strings/str_cat.h"
#include "worker/compute_device.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenCard(int ordinal, const DeviceOptions&) {
  return absl::UnimplementedError(
      absl::StrCat("cuda:", ordinal, ": this program was built without CUDA"));
}

}  // namespace caravan
