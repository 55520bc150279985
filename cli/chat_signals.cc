#include "cli/chat_signals.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <utility>

#include "base/check.h"
#include "cli/command.h"

namespace caravan {

ChatSignals::EventFd::EventFd() : fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CARAVAN_CHECK(fd >= 0);
}

ChatSignals::EventFd::~EventFd() { ::close(fd); }

ChatSignals::ChatSignals()
    : thread_({SIGTERM, SIGINT, SIGWINCH, SIGCONT}, [this](int signal) { OnSignal(signal); }) {}

ChatSignals::Events ChatSignals::Take() {
  MutexLock lock(&mu_);
  uint64_t count = 0;
  (void)!::read(wake_.fd, &count, sizeof(count));  // nothing there: nothing to clear
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
    (void)!::write(wake_.fd, &one, sizeof(one));  // fails only when it is readable already
  }
  stopped.request_stop();  // runs callbacks, so outside the lock
}

}  // namespace caravan
