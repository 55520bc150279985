#ifndef CARAVAN_CLUSTER_CERTIFICATE_WATCH_H_
#define CARAVAN_CLUSTER_CERTIFICATE_WATCH_H_

// Looks after the --certs directory of a process that runs for long. gRPC takes up new files by
// itself, and says nothing where it cannot; the process then goes on with those it has until they
// end, and is cut off. So this says it in the log while there is time:
//
//   certificate_expires   14 days and one day before its end or its authority's, and at the end;
//                         once each
//   certificate_unusable  the files are broken, or do not belong together; once until they are good
//   certificate_renewed   another certificate is there, and good

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "base/named_thread.h"

namespace caravan {

/// What is known of a directory's certificate. Look is called by one thread, not_after by any.
class CertificateWatch {
 public:
  explicit CertificateWatch(std::string directory) : directory_(std::move(directory)) {}

  /// Files that cannot be used are told of at the second look in a row that finds them: they may be
  /// being replaced.
  void Look(absl::Time now);

  /// When the certificate ends that was good last, or its authority if that is before; the infinite
  /// future: none was.
  absl::Time not_after() const;

 private:
  void SayWhenItEnds(absl::Time not_after, absl::Time now);

  const std::string directory_;
  int looks_without_ = 0;    // in a row
  std::string fingerprint_;  // of the one that was good last
  int warnings_ = 0;         // that its end was told of

  mutable Mutex mu_;
  absl::Time not_after_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

/// Has a CertificateWatch look at once and every `between_looks`, as long as it lives. Thread-safe.
class CertificateWatcher {
 public:
  explicit CertificateWatcher(const std::string& directory,
                              absl::Duration between_looks = absl::Seconds(10));
  ~CertificateWatcher();

  /// As CertificateWatch's.
  absl::Time not_after() const { return watch_.not_after(); }

 private:
  void Run();

  const absl::Duration between_looks_;
  CertificateWatch watch_;
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  NamedThread thread_;  // last: it uses the above
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_CERTIFICATE_WATCH_H_
