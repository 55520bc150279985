#include "cluster/sender_gate.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace caravan {

void SenderGate::Expect(uint64_t plan_version, StepSender sender) {
  MutexLock lock(&mu_);
  plan_version_ = plan_version;
  expected_ = std::move(sender);
}

absl::Status SenderGate::Check(const StepSender& sender, uint64_t plan_version) const {
  MutexLock lock(&mu_);
  if (plan_version != plan_version_) return absl::OkStatus();
  const bool right_one =
      (expected_.incarnation == 0 || sender.incarnation == expected_.incarnation) &&
      (expected_.identity.empty() || sender.identity == expected_.identity);
  if (right_one) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "the steps of plan ", plan_version, " come from ",
      expected_.identity.empty() ? std::string("another process") : expected_.identity,
      ", not from ", sender.identity.empty() ? std::string("this one") : sender.identity));
}

}  // namespace caravan
