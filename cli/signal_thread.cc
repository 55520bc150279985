#include "cli/signal_thread.h"

#include <pthread.h>

#include <utility>

namespace caravan {

SignalThread::SignalThread(const std::vector<int>& signals, std::function<void(int)> on_signal)
    : wakes_(signals.front()), on_signal_(std::move(on_signal)) {
  sigemptyset(&set_);
  for (const int signal : signals) sigaddset(&set_, signal);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  thread_ = std::thread([this] { Run(); });
}

SignalThread::~SignalThread() {
  ending_ = true;
  pthread_kill(thread_.native_handle(), wakes_);  // wakes sigwait
  thread_.join();
}

void SignalThread::Run() {
  pthread_setname_np(pthread_self(), "stop-signals");
  while (true) {
    int signal = 0;
    sigwait(&set_, &signal);
    if (ending_) return;
    on_signal_(signal);
  }
}

}  // namespace caravan
