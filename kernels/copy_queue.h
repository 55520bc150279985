#ifndef CARAVAN_KERNELS_COPY_QUEUE_H_
#define CARAVAN_KERNELS_COPY_QUEUE_H_

// Copies from the host to a backend's memory beside what the backend computes. Used by the thread
// that uses the backend.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace caravan {

class CopyQueue {
 public:
  virtual ~CopyQueue() = default;

  /// Copies from these bytes of the host are then done by the device itself, at its full rate, as
  /// long as the queue and they exist. Errors: Unavailable - the driver will not have it, and
  /// copies from there are slower.
  virtual absl::Status Pin(std::byte* host, int64_t bytes) = 0;

  /// Begins a copy. `host` may change after Wait. REQUIRES: the backend is done with `to`, or was
  /// asked for what uses it before the last Follow. Errors: Internal - the device is lost.
  virtual absl::Status Begin(const std::byte* host, int64_t bytes, std::byte* to) = 0;
  /// What the backend is asked for from now on comes after the copies begun so far. Errors: the
  /// same.
  virtual absl::Status Precede() = 0;
  /// Copies begun from now on come after what the backend was asked for so far. Errors: the same.
  virtual absl::Status Follow() = 0;
  /// Waits for the copies begun so far, and so for what they follow. Errors: the same.
  virtual absl::Status Wait() = 0;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_COPY_QUEUE_H_
