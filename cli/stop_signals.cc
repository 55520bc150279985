#include "cli/stop_signals.h"

#include <unistd.h>

#include <csignal>
#include <future>

#include "cli/command.h"

namespace caravan {

StopSignals::StopSignals()
    : thread_({SIGTERM, SIGINT}, [this](int /*signal*/) {
        if (source_.stop_requested()) _exit(kExitInterrupted);
        source_.request_stop();
      }) {}

void StopSignals::Wait() {
  std::promise<void> stopped;
  const std::stop_callback callback(source_.get_token(), [&stopped] { stopped.set_value(); });
  stopped.get_future().wait();
}

}  // namespace caravan
