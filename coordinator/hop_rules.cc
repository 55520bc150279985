#include "coordinator/hop_rules.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace caravan {

std::string WhyTrusted(const v1::Registration& a, const v1::Registration& b) {
  if (!a.machine().empty() && a.machine() == b.machine()) return "they are on one machine";
  for (const std::string& network : a.trusted_networks()) {
    const auto& others = b.trusted_networks();
    if (std::find(others.begin(), others.end(), network) != others.end()) {
      return absl::StrCat("both are in ", network, ", which is trusted");
    }
  }
  return "";
}

v1::Hop HopRules::Make(const Member& worker, const Member& neighbour) const {
  v1::Hop hop;
  hop.set_neighbour(DescribeWorker(neighbour));
  for (const Member* end : {&worker, &neighbour}) {
    const v1::Registration& registration = end->registration;
    if (registration.on_card() && !registration.nccl_version().empty()) continue;
    hop.set_why(absl::StrCat(DescribeWorker(*end),
                             registration.on_card() ? " offers no NCCL" : " has no card"));
    return hop;
  }
  const auto unjoined = unjoined_.find(std::minmax({worker.id, neighbour.id}));
  if (unjoined != unjoined_.end()) {
    hop.set_why(unjoined->second);
    return hop;
  }
  const std::string& version = worker.registration.nccl_version();
  const std::string& other_version = neighbour.registration.nccl_version();
  const std::string trusted = WhyTrusted(worker.registration, neighbour.registration);
  const bool insists =
      worker.registration.requires_nccl() && neighbour.registration.requires_nccl();
  const bool can = version == other_version &&
                   worker.registration.nccl_card() != neighbour.registration.nccl_card();
  hop.set_by_nccl(can && (insists || !trusted.empty()));
  if (hop.by_nccl()) {
    hop.set_why(absl::StrCat("both have NCCL ", version, ", and ",
                             trusted.empty() ? "both insist on it" : trusted));
  } else if (can) {
    hop.set_why("NCCL is not encrypted, and they share neither a machine nor a --trusted-network");
  } else if (version != other_version) {
    hop.set_why(absl::StrCat(DescribeWorker(worker), " has NCCL ", version, ", ",
                             DescribeWorker(neighbour), " has ", other_version));
  } else {
    hop.set_why("they share a card");
  }
  return hop;
}

void HopRules::RememberUnjoined(WorkerId a, WorkerId b, std::string why) {
  unjoined_[std::minmax({a, b})] = std::move(why);
}

void HopRules::Forget(WorkerId worker) {
  std::erase_if(unjoined_, [worker](const auto& hop) {
    return hop.first.first == worker || hop.first.second == worker;
  });
}

}  // namespace caravan
