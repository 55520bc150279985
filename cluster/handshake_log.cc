#include "cluster/handshake_log.h"

#include <cstdlib>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "grpc/support/log.h"

namespace caravan {
namespace {

// "Handshake failed with fatal error SSL_ERROR_SSL: error:0A000086:SSL routines::REASON."
constexpr absl::string_view kFailed = "Handshake failed";
constexpr absl::string_view kBeforeReason = "::";

// Whoever is refused comes again and again.
constexpr absl::Duration kQuietTime = absl::Seconds(10);

/// Of the last line, and when it was.
struct Said {
  Mutex mu;
  std::string reason ABSL_GUARDED_BY(mu);
  absl::Duration at ABSL_GUARDED_BY(mu);
};

void Hear(gpr_log_func_args* line) {
  absl::string_view reason = line->message;
  if (!absl::StartsWith(reason, kFailed)) return;
  const size_t before = reason.rfind(kBeforeReason);
  if (before != absl::string_view::npos) reason.remove_prefix(before + kBeforeReason.size());
  static Said said;  // gRPC takes a function without state
  {
    MutexLock lock(&said.mu);
    const absl::Duration now = SteadyClock().Now();
    if (reason == said.reason && now - said.at < kQuietTime) return;
    said.reason = std::string(reason);
    said.at = now;
  }
  LogWarning("handshake_failed", {{"why", reason}});
}

}  // namespace

void LogFailedHandshakes() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Whoever debugs gRPC gets its whole log, and these lines there.
    const char* const verbosity = std::getenv("GRPC_VERBOSITY");
    if (verbosity != nullptr && absl::string_view(verbosity) != "NONE") return;
    gpr_set_log_function(Hear);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_INFO);
  });
}

}  // namespace caravan
