#include "coordinator/control_loop.h"

#include <optional>

namespace caravan {
namespace {

// Tasks that may wait. Workers' reports make the most of them; a full queue holds their streams
// back.
constexpr size_t kQueuedTasks = 1024;

}  // namespace

ControlLoop::ControlLoop(absl::Duration tick_interval, std::function<void()> tick)
    : tick_interval_(tick_interval),
      tick_(std::move(tick)),
      tasks_(kQueuedTasks),
      thread_("control-loop", [this] { Run(); }) {}

ControlLoop::~ControlLoop() { Stop(); }

void ControlLoop::Stop() {
  tasks_.Close();
  thread_.Join();
}

void ControlLoop::Run() {
  // A tick comes after all that is queued: after a stall of this process, the heartbeats that wait
  // must be heard before their senders are judged.
  absl::Duration wait = tick_interval_;
  while (true) {
    std::optional<std::function<void()>> task = tasks_.PopWithTimeout(wait);
    if (tasks_.closed()) break;
    if (task.has_value()) {
      (*task)();
      wait = absl::ZeroDuration();
    } else {
      tick_();
      wait = tick_interval_;
    }
  }
  // Those who wait for a task in Call learn that it was dropped.
  while (tasks_.Pop().has_value()) {
  }
}

}  // namespace caravan
