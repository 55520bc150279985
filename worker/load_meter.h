#ifndef CARAVAN_WORKER_LOAD_METER_H_
#define CARAVAN_WORKER_LOAD_METER_H_

// How busy a stage is: time with a step in work, against all time.

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "caravan/v1/cluster.pb.h"

namespace caravan {

/// Counts from its construction on. Thread-safe; borrows the clock.
class LoadMeter {
 public:
  explicit LoadMeter(const Clock& clock) : clock_(clock), start_(clock.Now()) {}

  /// Around each step, by one thread.
  void BeginStep();
  void EndStep(int64_t rows);

  /// A step in work counts with the time that it has taken so far.
  v1::WorkerLoad Read() const;

 private:
  const Clock& clock_;
  const absl::Duration start_;

  mutable Mutex mu_;
  bool in_step_ ABSL_GUARDED_BY(mu_) = false;
  absl::Duration step_start_ ABSL_GUARDED_BY(mu_);
  absl::Duration busy_ ABSL_GUARDED_BY(mu_);  // in steps that ended
  int64_t steps_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t rows_ ABSL_GUARDED_BY(mu_) = 0;
};

/// Adds `load` to `sum`.
void AddLoad(const v1::WorkerLoad& load, v1::WorkerLoad& sum);

}  // namespace caravan

#endif  // CARAVAN_WORKER_LOAD_METER_H_
