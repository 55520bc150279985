#ifndef CARAVAN_BASE_SUBPROCESS_H_
#define CARAVAN_BASE_SUBPROCESS_H_

// A child process, for benchmarks and tests that need real ones.

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace caravan {

/// Owns the child: the destructor kills it and waits. Movable; used by one thread at a time.
class Subprocess {
 public:
  struct Options {
    std::vector<std::string> command;  // the program's path first
    std::string stdin_path = "/dev/null";
    std::string stdout_path = "/dev/null";  // written anew
    std::string stderr_path = "/dev/null";  // written anew; may be stdout_path
  };

  /// Errors: NotFound, PermissionDenied, ... - the program cannot be started (names it).
  static absl::StatusOr<Subprocess> Start(const Options& options);
  ~Subprocess();
  Subprocess(Subprocess&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), exit_code_(other.exit_code_) {}
  Subprocess& operator=(Subprocess&&) = delete;

  pid_t pid() const { return pid_; }

  /// Sends a signal; nothing happens once the child was waited for.
  void Signal(int signal);

  /// Waits for the child's end, for at most `timeout`. Returns its exit code, or 128 + the signal
  /// that ended it, again and again; nullopt when the time runs out.
  std::optional<int> Wait(absl::Duration timeout = absl::InfiniteDuration());

 private:
  explicit Subprocess(pid_t pid) : pid_(pid) {}

  pid_t pid_;
  std::optional<int> exit_code_;
};

}  // namespace caravan

#endif  // CARAVAN_BASE_SUBPROCESS_H_
