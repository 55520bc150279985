#include "cluster/certificate_watch.h"

#include <algorithm>
#include <array>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/certificate.h"
#include "cluster/certificate_files.h"

namespace caravan {
namespace {

// Before the end, the longest first.
constexpr std::array kWarnings = {absl::Hours(24 * 14), absl::Hours(24), absl::ZeroDuration()};

/// Of a certificate that is good now; its end is also its authority's, if that comes first.
absl::StatusOr<CertificateFacts> ReadFacts(const std::string& directory, absl::Time now) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string pem, ReadIdentity(directory, now));
  CARAVAN_ASSIGN_OR_RETURN(CertificateFacts facts, ReadCertificate(pem));
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(directory));
  for (const std::string& authority : SplitCertificates(authorities)) {
    if (!CheckIdentity(authority, pem, now).ok()) continue;
    CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts issuer, ReadCertificate(authority));
    facts.not_after = std::min(facts.not_after, issuer.not_after);
    break;
  }
  return facts;
}

/// Good or not; empty: there is none.
std::string FingerprintIn(const std::string& directory) {
  const absl::StatusOr<std::string> pem = ReadPrivateFile(IdentityPath(directory));
  if (!pem.ok()) return "";
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(*pem);
  return facts.ok() ? facts->fingerprint : "";
}

}  // namespace

void CertificateWatch::Look(absl::Time now) {
  const absl::StatusOr<CertificateFacts> facts = ReadFacts(directory_, now);
  if (!facts.ok()) {
    const absl::Time known_end = not_after();
    if (now >= known_end) {
      SayWhenItEnds(known_end, now);
      // Of one that has ended there is nothing more to say; of what was put in its place there is.
      if (FingerprintIn(directory_) == fingerprint_) {
        looks_without_ = 0;
        return;
      }
    }
    if (++looks_without_ == 2) {
      LogWarning("certificate_unusable",
                 {{"directory", directory_}, {"why", facts.status().message()}});
    }
    return;
  }
  looks_without_ = 0;
  if (facts->fingerprint != fingerprint_) {
    if (!fingerprint_.empty()) {
      LogInfo("certificate_renewed",
              {{"directory", directory_}, {"until", absl::FormatTime(facts->not_after)}});
    }
    fingerprint_ = facts->fingerprint;
    warnings_ = 0;
    MutexLock lock(&mu_);
    not_after_ = facts->not_after;
  }
  SayWhenItEnds(facts->not_after, now);
}

void CertificateWatch::SayWhenItEnds(absl::Time not_after, absl::Time now) {
  int due = 0;
  for (const absl::Duration before : kWarnings) due += now >= not_after - before ? 1 : 0;
  if (due <= warnings_) return;
  warnings_ = due;
  LogWarning("certificate_expires", {{"path", IdentityPath(directory_)},
                                     {"at", absl::FormatTime(not_after)},
                                     {"hours", absl::ToInt64Hours(not_after - now)}});
}

absl::Time CertificateWatch::not_after() const {
  MutexLock lock(&mu_);
  return not_after_;
}

CertificateWatcher::CertificateWatcher(const std::string& directory, absl::Duration between_looks)
    : between_looks_(between_looks),
      watch_(directory),
      thread_("certificates", [this] { Run(); }) {}

CertificateWatcher::~CertificateWatcher() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.Join();
}

void CertificateWatcher::Run() {
  while (true) {
    watch_.Look(absl::Now());
    MutexLock lock(&mu_);
    if (!stopping_) changed_.WaitWithTimeout(&mu_, between_looks_);
    if (stopping_) return;
  }
}

}  // namespace caravan
