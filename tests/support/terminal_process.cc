#include "tests/support/terminal_process.h"

#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "base/check.h"
#include "gtest/gtest.h"
#include "tests/support/test_cluster.h"

namespace caravan {

TerminalProcess::TerminalProcess(const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& environment) {
  std::vector<char*> argv = {const_cast<char*>(CARAVAN_BINARY)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const winsize size = {/*ws_row=*/24, /*ws_col=*/80, 0, 0};
  pid_ = ::forkpty(&terminal_, nullptr, nullptr, &size);
  CARAVAN_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::setenv("TERM", "xterm", 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
}

TerminalProcess::~TerminalProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  ::close(terminal_);
}

void TerminalProcess::Type(const std::string& keys) {
  EXPECT_EQ(::write(terminal_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
}

void TerminalProcess::Signal(int signal) { ::kill(pid_, signal); }

void TerminalProcess::StopAndGoOn() {
  Signal(SIGSTOP);
  int status = 0;
  CARAVAN_CHECK(::waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status));
  termios mode = {};
  EXPECT_EQ(::tcgetattr(terminal_, &mode), 0);
  mode.c_lflag |= ICANON | ECHO;
  EXPECT_EQ(::tcsetattr(terminal_, TCSANOW, &mode), 0);
  Signal(SIGCONT);
}

bool TerminalProcess::WaitFor(const std::string& text) {
  size_t at = 0;
  while ((at = screen_.find(text, found_)) == std::string::npos) {
    if (ReadSome()) continue;
    ADD_FAILURE() << "no \"" << text << "\" on: " << screen_;
    return false;
  }
  found_ = at + text.size();
  return true;
}

int TerminalProcess::Wait() {
  while (ReadSome()) {
  }
  int status = 0;
  pid_t ended = 0;
  if (!WaitUntil([&] { return (ended = ::waitpid(pid_, &status, WNOHANG)) != 0; })) {
    ADD_FAILURE() << "still running: " << screen_;
    return -1;
  }
  CARAVAN_CHECK(ended == pid_);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

bool TerminalProcess::ReadSome() {
  pollfd wait = {terminal_, POLLIN, 0};
  if (::poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(kTestDeadline))) <= 0)
    return false;
  char bytes[4096];
  const ssize_t got =
      ::read(terminal_, bytes, sizeof(bytes));  // fails once nobody holds the other end
  if (got <= 0) return false;
  screen_.append(bytes, static_cast<size_t>(got));
  return true;
}

}  // namespace caravan
