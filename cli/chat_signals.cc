#include "cli/chat_signals.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <utility>

#include "base/check.h"
#include "cli/command.h"

namespace caravan {

ChatSignals::ChatSignals()
    : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_({SIGTERM, SIGINT, SIGWINCH, SIGCONT}, [this](int signal) { OnSignal(signal); }) {
  CARAVAN_CHECK(fd_ >= 0);
}

ChatSignals::~ChatSignals() { ::close(fd_); }

ChatSignals::Events ChatSignals::Take() {
  MutexLock lock(&mu_);
  uint64_t count = 0;
  (void)!::read(fd_, &count, sizeof(count));  // nothing there: nothing to clear
  const bool terminated = events_.terminated;
  Events taken = std::exchange(events_, {});
  events_.terminated = terminated;
  return taken;
}

std::stop_token ChatSignals::NewScope() {
  MutexLock lock(&mu_);
  scope_ = std::stop_source();
  if (events_.interrupted || events_.terminated) scope_.request_stop();
  return scope_.get_token();
}

void ChatSignals::OnSignal(int signal) {
  std::stop_source stopped(std::nostopstate);
  {
    MutexLock lock(&mu_);
    if (signal == SIGTERM && events_.terminated) _exit(kExitInterrupted);
    events_.interrupted = events_.interrupted || signal == SIGINT;
    events_.terminated = events_.terminated || signal == SIGTERM;
    events_.resized = events_.resized || signal == SIGWINCH;
    events_.continued = events_.continued || signal == SIGCONT;
    if (signal == SIGINT || signal == SIGTERM) stopped = scope_;
    const uint64_t one = 1;
    (void)!::write(fd_, &one, sizeof(one));  // fails only when it is readable already
  }
  stopped.request_stop();  // runs callbacks, so outside the lock
}

}  // namespace caravan
