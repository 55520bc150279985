// In place of nccl_library.cc and nccl_communicator.cc, where the build found no nccl.h.

#include "absl/status/status.h"
#include "worker/nccl/nccl_communicator.h"
#include "worker/nccl/nccl_library.h"

namespace caravan {
namespace {

absl::Status NoNccl() {
  return absl::UnimplementedError("this build has no NCCL: it was made where there is no nccl.h");
}

}  // namespace

struct NcclFunctions {};

absl::StatusOr<std::unique_ptr<NcclLibrary>> NcclLibrary::Load(const std::string&) {
  return NoNccl();
}

NcclLibrary::~NcclLibrary() = default;

// Without a library neither of these is called.
absl::StatusOr<std::string> NcclCommunicator::NewUniqueId(const NcclLibrary&) { return NoNccl(); }

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(const NcclLibrary&,
                                                                           const CudaDevice&,
                                                                           const Options&) {
  return NoNccl();
}

}  // namespace caravan
