#ifndef CARAVAN_CLI_STOP_SIGNALS_H_
#define CARAVAN_CLI_STOP_SIGNALS_H_

// SIGINT and SIGTERM as a stop request, handled on an ordinary thread.

#include <stop_token>

#include "cli/signal_thread.h"

namespace caravan {

/// Make one before any other thread starts, as SignalThread says. The first signal requests a stop;
/// a second one ends the process at once, with exit code 130.
class StopSignals {
 public:
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  std::stop_token token() const { return source_.get_token(); }

  /// Returns when a stop was requested.
  void Wait();

 private:
  std::stop_source source_;
  SignalThread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_STOP_SIGNALS_H_
