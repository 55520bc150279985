#include "base/io/scheduled_read_queue.h"

#include <optional>
#include <utility>

#include "base/clock.h"

namespace caravan {

ScheduledReadQueue::ScheduledReadQueue(const Options& options)
    : schedule_(options, &SteadyClock()) {}

ReadQueue::Id ScheduledReadQueue::Submit(const FileRead& read, ReadPriority priority, Done done) {
  Id id = 0;
  bool ready = false;
  {
    MutexLock lock(&mu_);
    id = schedule_.Add(read, priority, std::move(done));
    ready = schedule_.Ready();
  }
  // Else the thread that finishes a piece finds it.
  if (ready) Wake();
  return id;
}

void ScheduledReadQueue::Promote(Id id) {
  bool ready = false;
  {
    MutexLock lock(&mu_);
    schedule_.Promote(id);
    ready = schedule_.Ready();
  }
  if (ready) Wake();
}

bool ScheduledReadQueue::Cancel(Id id) {
  std::optional<Done> done;  // destroyed without the lock: it may own anything
  MutexLock lock(&mu_);
  done = schedule_.Cancel(id);
  return done.has_value();
}

ReadQueue::Counters ScheduledReadQueue::counters() const {
  MutexLock lock(&mu_);
  return schedule_.counters();
}

void ScheduledReadQueue::Stop() {
  {
    MutexLock lock(&mu_);
    stopped_ = true;
    schedule_.Stop();
  }
  Wake();
}

void ScheduledReadQueue::Tell(std::vector<ReadSchedule::Ended>& ended) {
  for (const ReadSchedule::Ended& each : ended) each.done(each.status);
  ended.clear();
}

}  // namespace caravan
