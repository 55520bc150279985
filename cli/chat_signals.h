#ifndef CARAVAN_CLI_CHAT_SIGNALS_H_
#define CARAVAN_CLI_CHAT_SIGNALS_H_

// What a dialogue on a terminal hears of: Ctrl-C, which ends a reply or a line but not the process,
// SIGTERM, which ends it soon, and that the terminal has changed.

#include <stop_token>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "cli/signal_thread.h"

namespace caravan {

/// Make one before any other thread starts, as SignalThread says. A second SIGTERM ends the process
/// at once, with exit code 130.
class ChatSignals {
 public:
  struct Events {
    bool interrupted = false;  // Ctrl-C
    bool terminated = false;   // SIGTERM; stays so
    bool resized = false;      // the terminal's window
    bool continued = false;    // after Ctrl-Z
  };

  ChatSignals();
  ChatSignals(const ChatSignals&) = delete;
  ChatSignals& operator=(const ChatSignals&) = delete;

  /// Readable, for poll, from an event on until Take.
  int fd() const { return wake_.fd; }

  /// What has happened since the last Take.
  Events Take();

  /// Stopped by the next Ctrl-C or SIGTERM (at once if there was one that was not taken); a later
  /// Scope replaces it.
  std::stop_token NewScope();

 private:
  struct EventFd {
    EventFd();
    ~EventFd();
    const int fd;
  };

  void OnSignal(int signal);

  EventFd wake_;
  Mutex mu_;
  Events events_ ABSL_GUARDED_BY(mu_);
  std::stop_source scope_ ABSL_GUARDED_BY(mu_);
  SignalThread thread_;  // first to go
};

}  // namespace caravan

#endif  // CARAVAN_CLI_CHAT_SIGNALS_H_
