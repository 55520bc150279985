#ifndef CARAVAN_CLI_STOP_SIGNALS_H_
#define CARAVAN_CLI_STOP_SIGNALS_H_

// SIGINT and SIGTERM as a stop request, handled on an ordinary thread.

#include <atomic>
#include <stop_token>
#include <thread>

namespace caravan {

/// Make one before any other thread starts: threads inherit the signal mask that it sets. The first
/// signal requests a stop; a second one ends the process at once, with exit code 130.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  std::stop_token token() const { return source_.get_token(); }

  /// Returns when a stop was requested.
  void Wait();

 private:
  void Run();

  std::stop_source source_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_STOP_SIGNALS_H_
