#ifndef CARAVAN_CLUSTER_SILENCE_LIMIT_H_
#define CARAVAN_CLUSTER_SILENCE_LIMIT_H_

// Ends a call, at either end, that waits too long for one message of the other.

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "grpcpp/alarm.h"

namespace caravan {

/// Lives as long as the message is waited for. Thread-compatible.
class SilenceLimit {
 public:
  /// If this still lives after `limit`, `cancel` is called once, by another thread: TryCancel of
  /// the call's context. Not any more when the destructor has returned.
  SilenceLimit(std::function<void()> cancel, absl::Duration limit);
  ~SilenceLimit();
  SilenceLimit(const SilenceLimit&) = delete;
  SilenceLimit& operator=(const SilenceLimit&) = delete;

  /// Whether `cancel` was called.
  bool passed() const;

 private:
  struct Call;
  const std::shared_ptr<Call> call_;  // outlives this where the alarm goes off meanwhile
  grpc::Alarm alarm_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_SILENCE_LIMIT_H_
