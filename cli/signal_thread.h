#ifndef CARAVAN_CLI_SIGNAL_THREAD_H_
#define CARAVAN_CLI_SIGNAL_THREAD_H_

// Signals of the process, handled on an ordinary thread.

#include <atomic>
#include <csignal>
#include <functional>
#include <thread>
#include <vector>

namespace caravan {

/// Make one before any other thread starts: threads inherit the signal mask that it sets. At most
/// one at a time.
class SignalThread {
 public:
  /// `on_signal` is called on the thread, which shows as stop-signals, for each of `signals` that
  /// comes. REQUIRES: at least one signal.
  SignalThread(const std::vector<int>& signals, std::function<void(int)> on_signal);
  ~SignalThread();
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

 private:
  void Run();

  sigset_t set_;
  const int wakes_;  // a signal of the set, for the destructor
  const std::function<void(int)> on_signal_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_SIGNAL_THREAD_H_
