#include "cluster/identity.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

constexpr absl::string_view kPrefix = "caravan://cluster/";
constexpr size_t kMaxNameBytes = 63;

}  // namespace

absl::string_view RoleName(Role role) {
  switch (role) {
    case Role::kCoordinator:
      return "coordinator";
    case Role::kWorker:
      return "worker";
    case Role::kClient:
      break;
  }
  return "client";
}

absl::Status CheckIdentityName(absl::string_view name) {
  bool good = !name.empty() && name.size() <= kMaxNameBytes && absl::ascii_isalnum(name[0]);
  for (const char c : name) {
    good = good && (absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is no name for a certificate: it takes 1 to ", kMaxNameBytes,
                   " letters, digits, '.', '-' and '_', and begins with a letter or a digit"));
}

std::string ToString(const Identity& identity) {
  return absl::StrCat(RoleName(identity.role), "/", identity.name);
}

std::string ToUri(const Identity& identity) { return absl::StrCat(kPrefix, ToString(identity)); }

absl::StatusOr<Identity> ParseIdentity(absl::string_view text) {
  for (const Role role : {Role::kCoordinator, Role::kWorker, Role::kClient}) {
    absl::string_view name = text;
    if (!absl::ConsumePrefix(&name, absl::StrCat(RoleName(role), "/"))) continue;
    CARAVAN_RETURN_IF_ERROR(CheckIdentityName(name));
    return Identity{role, std::string(name)};
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" names no member of a cluster"));
}

absl::StatusOr<Identity> ParseIdentityUri(absl::string_view uri) {
  absl::string_view rest = uri;
  if (absl::ConsumePrefix(&rest, kPrefix)) return ParseIdentity(rest);
  return absl::InvalidArgumentError(absl::StrCat("\"", uri, "\" names no member of a cluster"));
}

}  // namespace caravan
