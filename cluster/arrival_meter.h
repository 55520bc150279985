#ifndef CARAVAN_CLUSTER_ARRIVAL_METER_H_
#define CARAVAN_CLUSTER_ARRIVAL_METER_H_

// How fast messages arrive on a link that is kept full, counted where they arrive: what the sender
// has written says little, as buffers on the way take in the first of it at once.

#include <cstdint>

#include "absl/time/time.h"

namespace caravan {

/// Counts from the end of one message to the end of another, once a quarter of the time to count
/// has gone by since the first: the link is in full swing then. Used by one thread.
class ArrivalMeter {
 public:
  /// count_for: at least so long.
  explicit ArrivalMeter(absl::Duration count_for) : count_for_(count_for) {}

  /// Notes that a message of so many bytes is here, `now` of any one clock. Returns whether it has
  /// counted for long enough.
  bool Arrived(int64_t bytes, absl::Duration now) {
    if (messages_++ == 0) first_at_ = now;
    if (counts_) {
      bytes_ += bytes;
      counted_until_ = now;
    } else if (now - first_at_ >= count_for_ / 4) {
      counts_ = true;
      counted_from_ = counted_until_ = now;
    }
    return bytes_ > 0 && time() >= count_for_;
  }

  int64_t bytes() const { return bytes_; }
  /// Zero until two messages were counted.
  absl::Duration time() const { return counted_until_ - counted_from_; }

 private:
  const absl::Duration count_for_;
  int64_t messages_ = 0;
  bool counts_ = false;
  int64_t bytes_ = 0;
  absl::Duration first_at_;
  absl::Duration counted_from_;
  absl::Duration counted_until_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_ARRIVAL_METER_H_
