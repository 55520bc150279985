#include "cluster/call_guard.h"

#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cluster/grpc_status.h"
#include "grpc/grpc_security_constants.h"

namespace caravan {
namespace {

struct Rule {
  absl::string_view prefix;  // of the call's path
  bool coordinator;
  bool worker;
  bool client;
};

constexpr std::array<Rule, 10> kRules = {{
    {"/caravan.v1.Cluster/Attend", false, true, false},
    {"/caravan.v1.Cluster/GetStatus", true, true, true},
    {"/caravan.v1.Cluster/Drain", true, false, true},
    {"/caravan.v1.Jobs/", true, false, true},
    {"/caravan.v1.Batches/", true, false, true},
    {"/caravan.v1.ModelFiles/", false, true, false},
    {"/caravan.v1.KvBlocks/", false, true, false},
    {"/caravan.v1.PackFiles/", false, true, false},
    {"/caravan.v1.Pipeline/Flow", true, true, false},
    {"/caravan.v1.Probe/", true, true, true},
}};
// Of a call's path, what is logged.
constexpr size_t kMostOfAPath = 100;

constexpr absl::string_view kForEverybody = "/caravan.v1.Enrolment/";

bool Allows(const Rule& rule, Role role) {
  switch (role) {
    case Role::kCoordinator:
      return rule.coordinator;
    case Role::kWorker:
      return rule.worker;
    case Role::kClient:
      break;
  }
  return rule.client;
}

/// Empty: it is not there.
absl::string_view Value(const grpc::AuthMetadataProcessor::InputMetadata& metadata,
                        const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return {};
  return absl::string_view(found->second.data(), found->second.size());
}

class CallGuard : public grpc::AuthMetadataProcessor {
 public:
  explicit CallGuard(KnowsToken knows_token) : knows_token_(std::move(knows_token)) {}

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context,
                       OutputMetadata* /*consumed*/, OutputMetadata* /*response*/) override {
    const absl::string_view called = Value(metadata, ":path");
    const std::optional<Identity> caller = IdentityOfPeer(context);
    absl::Status status = CheckCall(called, caller);
    if (status.ok() && !caller.has_value() &&
        (knows_token_ == nullptr || !knows_token_(std::string(Value(metadata, kTokenIdKey))))) {
      status = absl::PermissionDeniedError(
          "the join token is unknown, used or expired: caravan certs token makes another");
    }
    if (!status.ok()) {
      LogWarning("call_refused",
                 {{"call", called.substr(0, kMostOfAPath)}, {"why", status.message()}});
    }
    return ToGrpcStatus(status);
  }

 private:
  const KnowsToken knows_token_;
};

}  // namespace

absl::Status CheckCall(absl::string_view path, const std::optional<Identity>& caller) {
  if (absl::StartsWith(path, kForEverybody)) return absl::OkStatus();
  if (!caller.has_value()) {
    return absl::UnauthenticatedError(
        "this cluster has certificates, and the caller shows none: give --certs DIRECTORY");
  }
  for (const Rule& rule : kRules) {
    if (absl::StartsWith(path, rule.prefix) && Allows(rule, caller->role)) return absl::OkStatus();
  }
  return absl::PermissionDeniedError(
      absl::StrCat("a certificate of ", ToString(*caller), " does not allow the call ", path));
}

std::shared_ptr<grpc::AuthMetadataProcessor> MakeCallGuard(KnowsToken knows_token) {
  return std::make_shared<CallGuard>(std::move(knows_token));
}

std::optional<Identity> IdentityOfPeer(const grpc::AuthContext* context) {
  if (context == nullptr) return std::nullopt;
  for (const grpc::string_ref& uri : context->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)) {
    absl::StatusOr<Identity> identity = ParseIdentityUri(absl::string_view(uri.data(), uri.size()));
    if (identity.ok()) return *std::move(identity);
  }
  return std::nullopt;
}

}  // namespace caravan
