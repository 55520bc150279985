#ifndef CARAVAN_BASE_IO_SCHEDULED_READ_QUEUE_H_
#define CARAVAN_BASE_IO_SCHEDULED_READ_QUEUE_H_

// What the engines of ReadQueue share: a ReadSchedule under a lock. An engine adds the threads that
// take its pieces and read them.

#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/io/read_queue.h"
#include "base/io/read_schedule.h"
#include "base/mutex.h"

namespace caravan {

/// Thread-safe. An engine's destructor calls Stop and joins its threads.
class ScheduledReadQueue : public ReadQueue {
 public:
  Id Submit(const FileRead& read, ReadPriority priority, Done done) final;
  void Promote(Id id) final;
  bool Cancel(Id id) final;
  Counters counters() const final;

 protected:
  explicit ScheduledReadQueue(const Options& options);

  /// Makes threads that wait look at the schedule and at stopped_. Called without the lock.
  virtual void Wake() = 0;

  /// From now on threads end as soon as the schedule is idle.
  void Stop();

  /// Tells those that wait for the reads, and empties `ended`. REQUIRES: no lock is held.
  static void Tell(std::vector<ReadSchedule::Ended>& ended);

  mutable Mutex mu_;
  ReadSchedule schedule_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_IO_SCHEDULED_READ_QUEUE_H_
