#ifndef CARAVAN_CLI_PROGRESS_BAR_H_
#define CARAVAN_CLI_PROGRESS_BAR_H_

// Progress of a long work over bytes, on standard error: a bar with rate and time left on a
// terminal, else one line at the end.

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"

namespace caravan {

/// Used by one thread at a time. May be used again after its end.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label) : label_(std::move(label)) {}

  /// Starts anew when done_bytes is 0; ends the line when it reaches total_bytes.
  void Show(int64_t done_bytes, int64_t total_bytes);

 private:
  const std::string label_;
  absl::Duration started_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_PROGRESS_BAR_H_
