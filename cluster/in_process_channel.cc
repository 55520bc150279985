#include "cluster/in_process_channel.h"

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/mutex.h"
#include "base/named_thread.h"

namespace caravan {
namespace {

class InProcessChannel : public ActivationChannel {
 public:
  InProcessChannel(StepReceiver receiver, size_t capacity)
      : receiver_(std::move(receiver)),
        queue_(capacity),
        thread_("hop-local", [this] { Deliver(); }) {}
  ~InProcessChannel() override { Close(); }

  absl::Status Send(v1::Step step) override {
    if (queue_.Push(std::move(step))) return absl::OkStatus();
    return status();
  }

  void Close() override {
    End(absl::CancelledError("the channel is closed"));
    thread_.Join();
  }

 private:
  void Deliver() {
    while (status().ok()) {
      std::optional<v1::Step> step = queue_.Pop();
      if (!step.has_value() || !status().ok()) return;
      const absl::Status received = receiver_(*std::move(step));
      if (!received.ok()) End(received);
    }
  }

  /// The first end counts.
  void End(const absl::Status& status) {
    {
      MutexLock lock(&mu_);
      if (status_.ok()) status_ = status;
    }
    queue_.Close();
  }

  absl::Status status() const {
    MutexLock lock(&mu_);
    return status_;
  }

  const StepReceiver receiver_;
  mutable Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  BoundedQueue<v1::Step> queue_;
  NamedThread thread_;  // last: it uses all of the above
};

}  // namespace

std::unique_ptr<ActivationChannel> MakeInProcessChannel(StepReceiver receiver, size_t capacity) {
  CARAVAN_CHECK(capacity >= 1);
  return std::make_unique<InProcessChannel>(std::move(receiver), capacity);
}

}  // namespace caravan
