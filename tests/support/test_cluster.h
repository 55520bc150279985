#ifndef CARAVAN_TESTS_SUPPORT_TEST_CLUSTER_H_
#define CARAVAN_TESTS_SUPPORT_TEST_CLUSTER_H_

// A cluster of real processes of the real binary on this machine, for end-to-end tests. Everything
// waits for an event (a file, a line, a process's end) with a generous deadline; nothing sleeps for
// a guessed time, and no port is fixed.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/subprocess.h"
#include "tests/support/temp_dir.h"

namespace caravan {

/// Longest that anything may take before a test gives up: far more than it does on a busy machine
/// under a sanitizer.
inline constexpr absl::Duration kTestDeadline = absl::Seconds(120);

/// Polls `condition` every few milliseconds; false when it did not hold within kTestDeadline. For
/// what the outside world shows without an event to wait on, such as a file's contents.
bool WaitUntil(const std::function<bool()>& condition);

/// The file's contents; empty when there is none.
std::string Slurp(const std::string& path);

/// One `caravan` process, its output in files. Killed on destruction.
class TestProcess {
 public:
  /// Starts `caravan arguments...`; its output goes to `output_prefix`.out and .err. `directory`
  /// is where it runs; empty: here. `wrapper` is written before the command, and must become it.
  TestProcess(std::string output_prefix, std::vector<std::string> arguments,
              const std::string& directory = "", const std::string& stdin_path = "/dev/null",
              const std::vector<std::string>& wrapper = {});

  std::string out_path() const { return prefix_ + ".out"; }
  std::string err_path() const { return prefix_ + ".err"; }
  std::string Out() const { return Slurp(prefix_ + ".out"); }
  std::string Err() const { return Slurp(prefix_ + ".err"); }
  pid_t pid() const { return process_.pid(); }
  void Signal(int signal) { process_.Signal(signal); }

  /// Waits for its end: the exit code, or 128 + the signal; -1, with a failed expectation, when it
  /// still runs at the deadline.
  int Wait();
  bool Ended() { return process_.Wait(absl::ZeroDuration()).has_value(); }

  /// Waits until its standard output, or its standard error, holds `text`; false when it ended or
  /// the deadline came before. An empty text: anything at all.
  bool WaitForOut(const std::string& text) { return WaitForText(".out", text); }
  bool WaitForErr(const std::string& text) { return WaitForText(".err", text); }

  /// Command line and output, for a failed test's log.
  std::string Transcript() const;

 private:
  bool WaitForText(const std::string& suffix, const std::string& text);

  const std::string prefix_;
  const std::vector<std::string> arguments_;
  Subprocess process_;
};

/// A coordinator, workers and clients. On destruction, whatever coordinator and workers still run
/// must end with exit code 0 on SIGTERM (so a sanitizer's last word counts); when the test failed,
/// what every process printed is printed.
class TestCluster {
 public:
  TestCluster() = default;
  /// `wrapper` gives what is written before the command of a process of that name.
  explicit TestCluster(std::function<std::vector<std::string>(const std::string& name)> wrapper)
      : wrapper_(std::move(wrapper)) {}
  ~TestCluster();

  const TempDir& dir() const { return dir_; }
  /// HOST:PORT of the coordinator.
  const std::string& address() const { return address_; }
  /// HOST:PORT of its HTTP.
  const std::string& http_address() const { return http_address_; }

  /// Starts a coordinator of models/tiny-r1 and waits until it listens. `arguments` come last, so
  /// they win.
  TestProcess& StartCoordinator(std::vector<std::string> arguments,
                                const std::string& model = CARAVAN_SOURCE_DIR "/models/tiny-r1",
                                const std::string& directory = "");
  TestProcess& StartWorker(const std::string& name, std::vector<std::string> arguments = {});

  /// A coordinator for `num_workers` workers, named box-0, box-1, ...; returns when they serve.
  void Start(int num_workers, std::vector<std::string> coordinator_arguments = {});
  TestProcess& coordinator() { return *coordinator_; }
  TestProcess& worker(const std::string& name);

  /// `caravan run`, in the background.
  TestProcess& StartRun(const std::string& prompt, std::vector<std::string> arguments = {});
  /// A reply of thousands of tokens (noise at a high temperature); returns once it streams.
  TestProcess& StartLongRun(const std::vector<std::string>& arguments = {});
  /// `caravan run` of a question that the model knows; fails the test unless the answer is right.
  void ExpectAnswers();

  /// What `caravan status` prints.
  std::string Status();
  /// Waits until `caravan status` prints something that `wanted` accepts; fails the test at the
  /// deadline.
  void WaitForStatus(const std::function<bool(const std::string&)>& wanted);
  void WaitForStatus(const std::string& text);

  /// Starts any process; `name` is for logs. A coordinator gets a --state of its own.
  TestProcess& Launch(const std::string& name, std::vector<std::string> arguments,
                      const std::string& directory = "",
                      const std::string& stdin_path = "/dev/null");

 private:
  struct Entry {
    std::string name;
    bool serves;  // a coordinator or a worker
    std::unique_ptr<TestProcess> process;
  };

  const std::function<std::vector<std::string>(const std::string& name)> wrapper_;
  TempDir dir_;
  std::vector<Entry> processes_;  // in order of their start
  TestProcess* coordinator_ = nullptr;
  std::string address_;
  std::string http_address_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_TEST_CLUSTER_H_
