#ifndef CARAVAN_CLI_PROGRESS_BAR_H_
#define CARAVAN_CLI_PROGRESS_BAR_H_

// Progress of a long work over bytes, lines or tokens, on standard error: a bar with rate and time
// left on a terminal, else one line at the end.

#include <cstdint>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "base/clock.h"

namespace caravan {

/// Used by one thread at a time. May be used again after its end.
class ProgressBar {
 public:
  enum class Unit { kBytes, kLines, kTokens };

  explicit ProgressBar(std::string label, Unit unit = Unit::kBytes,
                       const Clock& clock = SteadyClock())
      : label_(std::move(label)), unit_(unit), clock_(clock) {}

  /// The rate is that since the first call: what was done before it, by a run that was interrupted,
  /// does not count. Starts anew when `done` falls, and after it reached `total`, which ends the
  /// line.
  void Show(int64_t done, int64_t total);

  /// What Show writes, without what a terminal needs; counts as a call of it.
  std::string Line(int64_t done, int64_t total);

  /// Ends the line before its time, so that something else can be said.
  void Break();

 private:
  /// What there is of so many; without the unit where that follows.
  std::string DescribeDone(int64_t done) const;
  std::string Describe(double units) const;

  const std::string label_;
  const Unit unit_;
  const Clock& clock_;
  bool started_ = false;
  absl::Duration start_;     // of the first call
  int64_t first_done_ = 0;   // as of it
  int64_t last_done_ = 0;    // as of the last call
  bool line_begun_ = false;  // on a terminal
};

}  // namespace caravan

#endif  // CARAVAN_CLI_PROGRESS_BAR_H_
