#ifndef CARAVAN_CLI_READ_METER_H_
#define CARAVAN_CLI_READ_METER_H_

// What is read from a disk by one queue or several, and for how long any read was under way.

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/io/read_queue.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe; borrows the clock.
class ReadMeter {
 public:
  struct Counters {
    int64_t read_bytes = 0;  // of reads that ended well
    absl::Duration busy;     // with at least one read between its submission and its end
  };

  /// What this meter is told, `sum` is told too, which outlives it; may be null.
  explicit ReadMeter(ReadMeter* sum = nullptr, const Clock& clock = SteadyClock())
      : sum_(sum), clock_(clock) {}

  /// A read is submitted.
  void Begin();
  /// One ended, with so many bytes; 0: it failed, or was taken back.
  void End(int64_t read_bytes);

  Counters counters() const;
  /// Until no read is under way.
  void WaitUntilIdle();

 private:
  ReadMeter* const sum_;
  const Clock& clock_;

  mutable Mutex mu_;
  CondVar idle_;
  Counters counters_ ABSL_GUARDED_BY(mu_);  // busy: up to busy_from_
  int64_t under_way_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Duration busy_from_ ABSL_GUARDED_BY(mu_);
};

/// `queue`, whose reads are told to `meter`, which outlives it.
std::unique_ptr<ReadQueue> MakeMeteredQueue(std::unique_ptr<ReadQueue> queue, ReadMeter* meter);

}  // namespace caravan

#endif  // CARAVAN_CLI_READ_METER_H_
