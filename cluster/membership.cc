#include "cluster/membership.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "cluster/box_json.h"
#include "cluster/known_boxes.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

constexpr size_t kMaxTextBytes = 256;                    // a line of a table
constexpr uint64_t kMaxMemoryBytes = uint64_t{1} << 50;  // 1 PiB: sums of many fit 63 bits
constexpr uint32_t kMaxThreads = 4096;
constexpr size_t kMaxBoxBytes = 4096;  // all figures that there are take a quarter

absl::Status FieldError(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("registration: ", field, " ", what));
}

/// Whether UTF-8 text (the wire's parser has checked that) is free of control characters: ASCII's,
/// and U+0080..U+009F, which are encoded as c2 80..c2 9f.
bool IsPrintable(absl::string_view text) {
  unsigned char previous = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f || (previous == 0xc2 && byte < 0xa0)) return false;
    previous = byte;
  }
  return true;
}

absl::Status CheckText(absl::string_view field, absl::string_view text) {
  if (text.empty()) return FieldError(field, "is empty");
  if (text.size() > kMaxTextBytes) {
    return FieldError(
        field, absl::StrCat("has ", text.size(), " bytes, and ", kMaxTextBytes, " is the limit"));
  }
  if (!IsPrintable(text)) return FieldError(field, "has control characters");
  return absl::OkStatus();
}

/// nullopt: it says nothing of its box.
absl::StatusOr<std::optional<Box>> ReadBox(const v1::Registration& registration) {
  const std::string& text = registration.box();
  if (text.empty()) return std::nullopt;
  if (text.size() > kMaxBoxBytes) {
    return FieldError(
        "box", absl::StrCat("has ", text.size(), " bytes, and ", kMaxBoxBytes, " is the limit"));
  }
  constexpr char kOrigin[] = "registration: box";
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, kOrigin));
  CARAVAN_ASSIGN_OR_RETURN(Box box, BoxFromJson(json, kOrigin));
  if (registration.on_card() && box.card.count == 0) {
    return FieldError("box", "has no card, and the worker computes on one");
  }
  return box;
}

}  // namespace

absl::Status CheckRegistration(const v1::Registration& registration) {
  CARAVAN_RETURN_IF_ERROR(CheckText("name", registration.name()));
  CARAVAN_RETURN_IF_ERROR(CheckText("address", registration.address()));
  CARAVAN_RETURN_IF_ERROR(Annotate(CheckAddress(registration.address()), "registration: address"));
  CARAVAN_RETURN_IF_ERROR(CheckText("device", registration.device()));
  const uint64_t memory = registration.memory_budget_bytes();
  if (memory == 0 || memory > kMaxMemoryBytes) {
    return FieldError("memory_budget_bytes",
                      absl::StrCat("is ", memory, ", not from 1 to ", kMaxMemoryBytes));
  }
  for (const auto& [field, bytes] : {std::pair{"process_bytes", registration.process_bytes()},
                                     std::pair{"kv_disk_bytes", registration.kv_disk_bytes()}}) {
    if (bytes <= kMaxMemoryBytes) continue;
    return FieldError(field, absl::StrCat("is ", bytes, ", more than ", kMaxMemoryBytes));
  }
  const uint32_t threads = registration.num_threads();
  if (threads == 0 || threads > kMaxThreads) {
    return FieldError("num_threads", absl::StrCat("is ", threads, ", not from 1 to ", kMaxThreads));
  }
  if (!registration.kv_dtype().empty()) {
    const std::optional<DType> kv_dtype = ParseDType(registration.kv_dtype());
    if (!kv_dtype.has_value() || !IsKvDType(*kv_dtype)) {
      return FieldError("kv_dtype", "is none of F32, F16 and Q8_0");
    }
  }
  return ReadBox(registration).status();
}

std::optional<Box> BoxOf(const v1::Registration& registration) {
  absl::StatusOr<std::optional<Box>> box = ReadBox(registration);
  CARAVAN_CHECK(box.ok());
  if (box->has_value() && (*box)->network.bytes == 0) {
    absl::StatusOr<Box::Network> network = FindPart<Box::Network>("1gbe");
    CARAVAN_CHECK(network.ok());
    (*box)->network = *std::move(network);
  }
  return *std::move(box);
}

DType KvDTypeOf(const v1::Registration& registration) {
  return ParseDType(registration.kv_dtype()).value_or(DType::kF32);
}

std::string DescribeWorker(const Member& member) {
  return absl::StrCat("worker ", Number(member.id), " (", member.registration.name(), ")");
}

v1::Peer ToPeer(const Member& member) {
  v1::Peer peer;
  peer.set_address(member.registration.address());
  peer.set_incarnation(member.incarnation);
  peer.set_name(DescribeWorker(member));
  peer.set_identity(member.identity);
  return peer;
}

absl::StatusOr<WorkerId> Membership::Join(uint64_t incarnation,
                                          const v1::Registration& registration,
                                          const std::string& identity) {
  if (incarnation == 0) return absl::InvalidArgumentError("registration: incarnation is 0");
  CARAVAN_RETURN_IF_ERROR(CheckRegistration(registration));
  MutexLock lock(&mu_);
  for (const auto& [id, member] : members_) {
    if (member.incarnation == incarnation) {
      return absl::AlreadyExistsError(absl::StrCat("this incarnation is worker ", Number(id), " (",
                                                   member.registration.name(), ") already"));
    }
  }
  for (auto it = members_.begin(); it != members_.end(); ++it) {
    if (it->second.registration.address() != registration.address()) continue;
    if (it->second.identity != identity) {
      return absl::PermissionDeniedError(
          absl::StrCat(registration.address(), " is the address of worker ", Number(it->first),
                       " (", it->second.registration.name(), "), which is ", it->second.identity,
                       " and not ", identity));
    }
    lost_.insert(members_.extract(it));
    break;  // at most one member has an address
  }
  const absl::Duration now = clock_.Now();
  const WorkerId id{++last_id_};
  members_.emplace(id, Member{id, incarnation, registration, identity, now, now});
  return id;
}

absl::StatusOr<Membership::MemberMap::iterator> Membership::FindAlive(WorkerId id,
                                                                      uint64_t incarnation) {
  const auto it = members_.find(id);
  if (it == members_.end()) {
    return absl::AbortedError(
        absl::StrCat("worker ", Number(id), " is not a member (any more); join anew"));
  }
  if (it->second.incarnation != incarnation) {
    return absl::AbortedError(
        absl::StrCat("worker ", Number(id), " is another incarnation; join anew"));
  }
  return it;
}

absl::Status Membership::Heard(WorkerId id, uint64_t incarnation) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(const auto it, FindAlive(id, incarnation));
  it->second.last_heard = clock_.Now();
  return absl::OkStatus();
}

absl::Status Membership::Leave(WorkerId id, uint64_t incarnation) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(const auto it, FindAlive(id, incarnation));
  members_.erase(it);
  return absl::OkStatus();
}

std::vector<Member> Membership::Expire() {
  MutexLock lock(&mu_);
  const absl::Duration now = clock_.Now();
  for (auto it = members_.begin(); it != members_.end();) {
    const auto next = std::next(it);
    if (now - it->second.last_heard > options_.heartbeat_timeout) {
      lost_.insert(members_.extract(it));
    }
    it = next;
  }
  std::vector<Member> expired;
  for (auto& [id, member] : lost_) expired.push_back(std::move(member));
  lost_.clear();
  return expired;
}

std::vector<Member> Membership::Members() const {
  MutexLock lock(&mu_);
  std::vector<Member> members;
  for (const auto& [id, member] : members_) members.push_back(member);
  return members;
}

std::optional<Member> Membership::Find(WorkerId id) const {
  MutexLock lock(&mu_);
  const auto it = members_.find(id);
  if (it == members_.end()) return std::nullopt;
  return it->second;
}

}  // namespace caravan
