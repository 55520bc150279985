#ifndef CARAVAN_COORDINATOR_HTTP_DEADLINE_H_
#define CARAVAN_COORDINATOR_HTTP_DEADLINE_H_

// A deadline that is moved far more often than it is reached: moving it is an assignment.

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>

#include "absl/time/time.h"

namespace caravan {

/// Used on `executor` only, a strand.
class Deadline {
 public:
  /// `on_reached` is called on `executor`.
  Deadline(const boost::asio::any_io_executor& executor, std::function<void()> on_reached)
      : timer_(executor), on_reached_(std::move(on_reached)) {}

  /// Replaces the deadline. Nothing is called once `owner`, who owns this object, is gone.
  void Set(absl::Duration from_now, std::weak_ptr<void> owner);
  void Clear() { at_ = TimePoint::max(); }
  /// Clear, and the timer goes too.
  void Cancel();

 private:
  using TimePoint = std::chrono::steady_clock::time_point;
  void Arm(std::weak_ptr<void> owner);
  void OnTimer(std::weak_ptr<void> owner);

  boost::asio::steady_timer timer_;
  const std::function<void()> on_reached_;
  TimePoint at_ = TimePoint::max();        // max: none
  TimePoint timer_at_ = TimePoint::max();  // when the timer looks; at or before at_ unless max
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_DEADLINE_H_
