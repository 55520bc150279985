#include "cli/security_flags.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cli/validators.h"
#include "cluster/certificate_files.h"

namespace caravan {
namespace {

// Time enough to make another.
constexpr absl::Duration kSoon = absl::Hours(24 * 14);

}  // namespace

void SecurityFlags::AddTo(CLI::App& command) {
  command
      .add_option("--certs", certs,
                  "Directory with this end's certificate and key (caravan certs makes it): all "
                  "connections are then encrypted and both ends show who they are")
      ->envname("CARAVAN_CERTS")
      ->type_name("DIRECTORY")
      ->check(NotEmpty());
}

void SecurityFlags::AddToServer(CLI::App& command) {
  AddTo(command);
  serves = true;
  command.add_flag("--insecure", insecure,
                   "Without certificates listen beyond this machine's loopback too: whoever "
                   "reaches the port may do everything, and read what goes by");
}

absl::StatusOr<TransportSecurity> SecurityFlags::Load() const {
  TransportSecurity security;
  security.insecure = insecure;
  if (certs.empty()) {
    if (insecure) {
      LogWarning("insecure", {{"why",
                               "--insecure: connections are neither encrypted nor "
                               "authenticated; whoever reaches a port may do everything"}});
    }
    return security;
  }
  if (insecure) return absl::InvalidArgumentError("--insecure and --certs exclude each other");
  const absl::Time now = absl::Now();
  CARAVAN_ASSIGN_OR_RETURN(security.tls, ClusterTls::Load(certs, now));
  CARAVAN_ASSIGN_OR_RETURN(const std::string pem, ReadIdentity(certs, now));
  CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts, ReadCertificate(pem));
  if (!serves && facts.not_after - now < kSoon) {
    LogWarning("certificate_expires",
               {{"path", IdentityPath(certs)}, {"at", absl::FormatTime(facts.not_after)}});
  }
  return security;
}

}  // namespace caravan
