#ifndef CARAVAN_TESTS_WORKER_FAKE_HOP_H_
#define CARAVAN_TESTS_WORKER_FAKE_HOP_H_

// The next hop of a worker under test: keeps what is sent until the test takes it.

#include <deque>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"
#include "cluster/activation_channel.h"

namespace caravan {

/// Thread-safe. Outlives the channels that it gives out.
class FakeHop {
 public:
  std::unique_ptr<ActivationChannel> Connect() { return std::make_unique<Channel>(this); }

  /// Waits for the oldest step that was sent.
  v1::Step Take() {
    MutexLock lock(&mu_);
    while (sent_.empty()) changed_.Wait(&mu_);
    v1::Step step = std::move(sent_.front());
    sent_.pop_front();
    return step;
  }

  /// From now on Send fails with `why`.
  void Break(const absl::Status& why) {
    MutexLock lock(&mu_);
    broken_ = why;
  }

  /// From now on Send waits until the channel is closed.
  void Hold() {
    MutexLock lock(&mu_);
    held_ = true;
  }

  void WaitForASendThatWaits() {
    MutexLock lock(&mu_);
    while (!waiting_) changed_.Wait(&mu_);
  }

 private:
  class Channel : public ActivationChannel {
   public:
    explicit Channel(FakeHop* hop) : hop_(hop) {}
    absl::Status Send(v1::Step step) override { return hop_->Send(std::move(step)); }
    void Close() override {
      MutexLock lock(&hop_->mu_);
      hop_->closed_ = true;
      hop_->changed_.SignalAll();
    }

   private:
    FakeHop* const hop_;
  };

  absl::Status Send(v1::Step step) {
    MutexLock lock(&mu_);
    if (held_) {
      waiting_ = true;
      changed_.SignalAll();
      while (!closed_) changed_.Wait(&mu_);
    }
    if (closed_) return absl::CancelledError("closed");
    if (!broken_.ok()) return broken_;
    sent_.push_back(std::move(step));
    changed_.SignalAll();
    return absl::OkStatus();
  }

  Mutex mu_;
  CondVar changed_;
  std::deque<v1::Step> sent_ ABSL_GUARDED_BY(mu_);
  absl::Status broken_ ABSL_GUARDED_BY(mu_);
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool waiting_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_FAKE_HOP_H_
