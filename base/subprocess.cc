#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "base/clock.h"

extern char** environ;

namespace caravan {

absl::StatusOr<Subprocess> Subprocess::Start(const Options& options) {
  std::vector<char*> argv;
  for (const std::string& argument : options.command) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, options.stdin_path.c_str(), O_RDONLY, 0);
  constexpr int kWrite = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND;
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, options.stdout_path.c_str(), kWrite,
                                   0644);
  if (options.stderr_path == options.stdout_path) {
    posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, options.stderr_path.c_str(), kWrite,
                                     0644);
  }
  // A child starts with no signal blocked, whatever this process's threads block.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);

  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", options.command[0]));
  }
  return Subprocess(pid);
}

Subprocess::~Subprocess() {
  if (pid_ < 0 || exit_code_.has_value()) return;
  Signal(SIGKILL);
  Wait();
}

void Subprocess::Signal(int signal) {
  if (pid_ > 0 && !exit_code_.has_value()) ::kill(pid_, signal);
}

std::optional<int> Subprocess::Wait(absl::Duration timeout) {
  if (exit_code_.has_value()) return exit_code_;
  if (timeout != absl::InfiniteDuration()) {
    // A pidfd becomes readable when its process ends.
    const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
    if (fd < 0) return std::nullopt;
    const absl::Duration deadline = SteadyClock().Now() + timeout;
    int ready = 0;
    do {
      const absl::Duration left = std::max(absl::ZeroDuration(), deadline - SteadyClock().Now());
      pollfd poll_fd{fd, POLLIN, 0};
      ready = ::poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    } while (ready < 0 && errno == EINTR);
    ::close(fd);
    if (ready <= 0) return std::nullopt;
  }
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return exit_code_;
}

}  // namespace caravan
