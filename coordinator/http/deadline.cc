#include "coordinator/http/deadline.h"

#include <utility>

namespace caravan {

void Deadline::Set(absl::Duration from_now, std::weak_ptr<void> owner) {
  at_ = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(from_now);
  if (at_ < timer_at_) Arm(std::move(owner));
}

void Deadline::Cancel() {
  Clear();
  timer_at_ = TimePoint::max();
  timer_.cancel();
}

void Deadline::Arm(std::weak_ptr<void> owner) {
  timer_at_ = at_;
  timer_.expires_at(at_);  // cancels the wait before
  timer_.async_wait([this, owner = std::move(owner)](const boost::system::error_code& error) {
    const std::shared_ptr<void> alive = owner.lock();
    if (alive != nullptr && !error) OnTimer(owner);
  });
}

void Deadline::OnTimer(std::weak_ptr<void> owner) {
  // A wait that was cancelled too late to know it: a newer one is under way.
  const TimePoint now = std::chrono::steady_clock::now();
  if (now < timer_at_) return;
  timer_at_ = TimePoint::max();
  if (at_ == TimePoint::max()) return;
  if (now < at_) return Arm(std::move(owner));
  at_ = TimePoint::max();
  on_reached_();
}

}  // namespace caravan
