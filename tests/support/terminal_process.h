#ifndef CARAVAN_TESTS_SUPPORT_TERMINAL_PROCESS_H_
#define CARAVAN_TESTS_SUPPORT_TERMINAL_PROCESS_H_

// A `caravan` process at a terminal, for what it does only there: editing lines, colours, Ctrl-C.

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace caravan {

/// Killed on destruction. Standard input, output and error are one terminal of 80 columns.
class TerminalProcess {
 public:
  /// Starts `caravan arguments...` with these variables beside the test's own.
  TerminalProcess(const std::vector<std::string>& arguments,
                  const std::map<std::string, std::string>& environment);
  ~TerminalProcess();
  TerminalProcess(const TerminalProcess&) = delete;
  TerminalProcess& operator=(const TerminalProcess&) = delete;

  /// As if typed: "\x03" is Ctrl-C, "\r" the return key.
  void Type(const std::string& keys);
  void Signal(int signal);
  /// Stops the process, sets the terminal as a shell does for itself, and lets the process go on.
  void StopAndGoOn();

  /// Waits until the terminal got `text` behind what the last such wait found; false, with a failed
  /// expectation, when it ended or kTestDeadline passed before.
  bool WaitFor(const std::string& text);

  /// All that the terminal got so far.
  const std::string& screen() const { return screen_; }

  /// Reads on until the process ends: its exit code, or 128 + the signal; -1, with a failed
  /// expectation, when it still runs at kTestDeadline.
  int Wait();

 private:
  /// False at the end.
  bool ReadSome();

  pid_t pid_ = -1;
  int terminal_ = -1;
  std::string screen_;
  size_t found_ = 0;  // of screen_, where the last wait's text ended
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_TERMINAL_PROCESS_H_
