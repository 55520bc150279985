#ifndef CARAVAN_CLI_PROGRESS_BAR_H_
#define CARAVAN_CLI_PROGRESS_BAR_H_

// Progress of a long work over bytes, lines or tokens, on standard error: a bar with rate and time
// left on a terminal, else one line at the end.

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"

namespace caravan {

/// Used by one thread at a time. May be used again after its end.
class ProgressBar {
 public:
  enum class Unit { kBytes, kLines, kTokens };

  explicit ProgressBar(std::string label, Unit unit = Unit::kBytes)
      : label_(std::move(label)), unit_(unit) {}

  /// Starts anew when `done` is 0; ends the line when it reaches `total`.
  void Show(int64_t done, int64_t total);

  /// Ends the line before its time, so that something else can be said.
  void Break();

 private:
  /// What there is of so many; without the unit where that follows.
  std::string DescribeDone(int64_t done) const;
  std::string Describe(double units) const;

  const std::string label_;
  const Unit unit_;
  absl::Duration started_;
  bool line_begun_ = false;  // on a terminal
};

}  // namespace caravan

#endif  // CARAVAN_CLI_PROGRESS_BAR_H_
