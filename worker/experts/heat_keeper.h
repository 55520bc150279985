#ifndef CARAVAN_WORKER_EXPERTS_HEAT_KEEPER_H_
#define CARAVAN_WORKER_EXPERTS_HEAT_KEEPER_H_

// Keeps what a stage's cache learns about its experts from one run to the next (expert_heat.h):
// reads it before the stage begins, writes it now and then and at the end. Whatever is wrong with
// the file or its disk is a warning; the stage then begins cold, or learns for this run alone.
//
// Used by one thread at a time. Writes on a thread of its own, so that no step waits for a disk.

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/named_thread.h"
#include "worker/experts/expert_cache.h"

namespace caravan {

class HeatKeeper {
 public:
  struct Options {
    std::string path;
    uint64_t model_fingerprint = 0;
    // Between writes. What a killed worker forgets; 58 layers of 256 experts take 0.3 MB.
    absl::Duration interval = absl::Minutes(5);
    const Clock* clock = &SteadyClock();
  };

  explicit HeatKeeper(Options options);
  ~HeatKeeper();

  /// `directory`/expert-heat-FIRST-END.json, for the layers [FIRST, END) of the shape.
  static std::string PathOf(absl::string_view directory, const ExpertCache::Shape& shape);

  /// Sets the cache's scores to what the file has. That there is none is no matter for a warning.
  void Load(ExpertCache& cache) const;

  /// Writes the scores as of `step` if the interval has passed since the last time and steps were
  /// run. Does not wait: where that write would have to, the next one is an interval later.
  void AfterStep(const ExpertCache& cache, int64_t step);

  /// Writes what was not yet written, and waits for that. Idempotent; the last call.
  void Finish(const ExpertCache& cache, int64_t step);

 private:
  void Write(absl::string_view heat);

  const Options options_;
  int64_t kept_step_ = -1;  // the last one that was written, or is being
  absl::Duration kept_at_;  // on the clock: the last try
  bool failed_ = false;     // of the last write; of writer_, then of Finish

  BoundedQueue<std::string> queue_{1};  // own synchronisation
  NamedThread writer_;                  // last: it uses all of the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_HEAT_KEEPER_H_
