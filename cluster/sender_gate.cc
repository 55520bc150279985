#include "cluster/sender_gate.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

constexpr size_t kKnownPlans = 4;

}  // namespace

void SenderGate::Expect(uint64_t plan_version, StepSender sender) {
  MutexLock lock(&mu_);
  expected_[plan_version] = std::move(sender);
  if (expected_.size() > kKnownPlans) expected_.erase(expected_.begin());
}

absl::Status SenderGate::Check(const StepSender& sender, uint64_t plan_version) const {
  MutexLock lock(&mu_);
  const auto found = expected_.find(plan_version);
  if (found == expected_.end()) {
    return absl::AbortedError(
        absl::StrCat("steps of plan ", plan_version, " are not expected here"));
  }
  const StepSender& expected = found->second;
  const bool right_one =
      (expected.incarnation == 0 || sender.incarnation == expected.incarnation) &&
      (expected.identity.empty() || sender.identity == expected.identity);
  if (right_one) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "the steps of plan ", plan_version, " come from ",
      expected.identity.empty() ? std::string("another process") : expected.identity, ", not from ",
      sender.identity.empty() ? std::string("this one") : sender.identity));
}

}  // namespace caravan
