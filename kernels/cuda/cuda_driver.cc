#include "kernels/cuda/cuda_driver.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

std::string CudaVersionText(int version) {
  return absl::StrCat("CUDA ", version / 1000, ".", version % 1000 / 10);
}

}  // namespace

absl::Status InsufficientDriver(int driver_version, int runtime_version) {
  const std::string runtime = CudaVersionText(runtime_version);
  if (driver_version == 0) {
    return absl::UnavailableError(absl::StrCat(
        "there is no CUDA driver: this program was built with ", runtime, " and needs one for it"));
  }
  return absl::UnavailableError(absl::StrCat("the driver is too old: it is made for ",
                                             CudaVersionText(driver_version),
                                             ", and this program was built with ", runtime));
}

}  // namespace caravan
