#include "coordinator/join_check.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "cluster/membership.h"
#include "cluster/protocol_version.h"
#include "kernels/kv_rows.h"

namespace caravan {

absl::Status CheckCanJoin(const v1::Registration& registration, const v1::ModelReference& model,
                          const ModelConfig& config) {
  if (registration.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker ", registration.name(), " speaks version ",
                     registration.protocol_version(), " of the protocol, and the coordinator ",
                     kProtocolVersion, ": all processes of a cluster must be of one version"));
  }
  const uint64_t fingerprint = registration.model_fingerprint();
  if (fingerprint != 0 && fingerprint != model.fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "what --model names on worker ", registration.name(), " is not the coordinator's model (",
        "fingerprint ", absl::Hex(fingerprint, absl::kZeroPad16), ", and ",
        absl::Hex(model.fingerprint(), absl::kZeroPad16), " here)"));
  }
  const absl::Status kv = CheckKvDType(config.Mla(), KvDTypeOf(registration));
  if (!kv.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--kv of worker ", registration.name(), ": ", kv.message()));
  }
  return absl::OkStatus();
}

}  // namespace caravan
