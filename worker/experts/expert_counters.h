#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_COUNTERS_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_COUNTERS_H_

// What became of the experts that steps wanted, counted.

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace caravan {

struct ExpertCounters {
  int64_t hits = 0;    // experts that a visit needed and found in memory
  int64_t misses = 0;  // that it needed and had to wait for
  int64_t reads = 0;   // of experts, that ended well; guesses too
  int64_t bytes_read = 0;
  int64_t evictions = 0;
  int64_t failovers = 0;  // reads of a copy that were bad, so that another one was read
  // Of experts: reads begun before a visit needed them.
  int64_t guesses = 0;
  int64_t guesses_used = 0;  // their share of `guesses` is the precision,
  int64_t guessable = 0;     // and of this the recall: what visits needed that were guessed for and
                             // did not find in memory, but for guesses
  int64_t guesses_wasted = 0;  // gone without use
  int64_t bytes_wasted = 0;    // read for those
  absl::Duration waited;       // by visits, for reads
};

/// Thread-safe.
class ExpertMeter {
 public:
  void Add(int64_t ExpertCounters::*counter, int64_t count) {
    MutexLock lock(&mu_);
    counters_.*counter += count;
  }
  void AddWaited(absl::Duration waited) {
    MutexLock lock(&mu_);
    counters_.waited += waited;
  }
  /// A guess is gone without use, for which so much had been read.
  void AddWasted(int64_t bytes) {
    MutexLock lock(&mu_);
    ++counters_.guesses_wasted;
    counters_.bytes_wasted += bytes;
  }
  ExpertCounters Read() const {
    MutexLock lock(&mu_);
    return counters_;
  }

 private:
  mutable Mutex mu_;
  ExpertCounters counters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_COUNTERS_H_
