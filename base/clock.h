#ifndef CARAVAN_BASE_CLOCK_H_
#define CARAVAN_BASE_CLOCK_H_

// Time as an argument: logic asks a Clock, so tests move time by hand and never sleep.

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Time since an arbitrary start; never goes back.
  virtual absl::Duration Now() const = 0;
};

/// The machine's monotonic clock. The object lives for ever.
Clock& SteadyClock();

/// Stands still until told.
class SimulatedClock : public Clock {
 public:
  absl::Duration Now() const override;
  void Advance(absl::Duration by);

 private:
  mutable Mutex mu_;
  absl::Duration now_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();
};

}  // namespace caravan

#endif  // CARAVAN_BASE_CLOCK_H_
