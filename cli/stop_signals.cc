#include "cli/stop_signals.h"

#include <unistd.h>
#include <csignal>
#include <future>

#include "cli/command.h"

namespace caravan {
namespace {

sigset_t StopSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

StopSignals::StopSignals() {
  const sigset_t set = StopSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Run(); });
}

StopSignals::~StopSignals() {
  ending_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);  // wakes sigwait
  thread_.join();
}

void StopSignals::Wait() {
  std::promise<void> stopped;
  const std::stop_callback callback(source_.get_token(), [&stopped] { stopped.set_value(); });
  stopped.get_future().wait();
}

void StopSignals::Run() {
  pthread_setname_np(pthread_self(), "stop-signals");
  const sigset_t set = StopSet();
  while (true) {
    int signal = 0;
    sigwait(&set, &signal);
    if (ending_) return;
    if (source_.stop_requested()) _exit(kExitInterrupted);
    source_.request_stop();
  }
}

}  // namespace caravan
