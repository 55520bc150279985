#include "tests/support/test_cluster.h"

#include <csignal>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(5);

Subprocess StartOrDie(const std::string& prefix, const std::vector<std::string>& arguments,
                      const std::string& directory, const std::string& stdin_path,
                      const std::vector<std::string>& wrapper) {
  Subprocess::Options options;
  options.command = wrapper;
  // env replaces itself with the program, so the process stays the one that was started.
  if (!directory.empty()) {
    options.command.insert(options.command.end(), {"/usr/bin/env", "-C", directory});
  }
  options.command.push_back(CARAVAN_BINARY);
  options.command.insert(options.command.end(), arguments.begin(), arguments.end());
  options.stdin_path = stdin_path;
  options.stdout_path = prefix + ".out";
  options.stderr_path = prefix + ".err";
  absl::StatusOr<Subprocess> process = Subprocess::Start(options);
  CARAVAN_CHECK(process.ok());
  return *std::move(process);
}

}  // namespace

bool WaitUntil(const std::function<bool()>& condition) {
  const absl::Duration deadline = SteadyClock().Now() + kTestDeadline;
  while (!condition()) {
    if (SteadyClock().Now() >= deadline) return false;
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(kPollInterval));
  }
  return true;
}

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

TestProcess::TestProcess(std::string output_prefix, std::vector<std::string> arguments,
                         const std::string& directory, const std::string& stdin_path,
                         const std::vector<std::string>& wrapper)
    : prefix_(std::move(output_prefix)),
      arguments_(std::move(arguments)),
      process_(StartOrDie(prefix_, arguments_, directory, stdin_path, wrapper)) {}

int TestProcess::Wait() {
  const std::optional<int> code = process_.Wait(kTestDeadline);
  EXPECT_TRUE(code.has_value()) << "still running: " << Transcript();
  return code.value_or(-1);
}

bool TestProcess::WaitForText(const std::string& suffix, const std::string& text) {
  bool found = false;
  WaitUntil([&] {
    const bool ended = Ended();  // before looking, so that its last words are seen
    const std::string output = Slurp(prefix_ + suffix);
    found = text.empty() ? !output.empty() : absl::StrContains(output, text);
    return found || ended;
  });
  EXPECT_TRUE(found) << "no \"" << text << "\" from: " << Transcript();
  return found;
}

std::string TestProcess::Transcript() const {
  return absl::StrCat("caravan ", absl::StrJoin(arguments_, " "), "\n", Out(), Err());
}

TestCluster::~TestCluster() {
  // The last one started leaves first, so that no worker looks for a coordinator that is gone.
  for (auto it = processes_.rbegin(); it != processes_.rend(); ++it) {
    if (!it->serves || it->process->Ended()) continue;
    it->process->Signal(SIGTERM);
    EXPECT_EQ(it->process->Wait(), 0) << it->name;
  }
  if (!::testing::Test::HasFailure()) return;
  for (const Entry& entry : processes_) {
    std::cerr << "---- " << entry.name << ": " << entry.process->Transcript() << "\n";
  }
}

TestProcess& TestCluster::Launch(const std::string& name, std::vector<std::string> arguments,
                                 const std::string& directory, const std::string& stdin_path) {
  const std::string prefix = dir_.File(absl::StrCat(processes_.size(), "-", name));
  const bool serves = arguments[0] == "coordinator" || arguments[0] == "worker";
  if (arguments[0] == "coordinator") {
    // First, so that a test's own wins.
    const std::string state = dir_.File(absl::StrCat("state-", processes_.size(), ".db"));
    arguments.insert(arguments.begin() + 1, {"--state", state});
  }
  processes_.push_back({name, serves,
                        std::make_unique<TestProcess>(
                            prefix, std::move(arguments), directory, stdin_path,
                            wrapper_ == nullptr ? std::vector<std::string>() : wrapper_(name))});
  return *processes_.back().process;
}

TestProcess& TestCluster::StartCoordinator(std::vector<std::string> arguments,
                                           const std::string& model, const std::string& directory) {
  const std::string address_file = dir_.File(absl::StrCat("address-", processes_.size()));
  const std::string http_address_file = absl::StrCat(address_file, "-http");
  std::vector<std::string> command = {
      "coordinator",    "--model",    model,    "--listen",    "127.0.0.1:0",
      "--address-file", address_file, "--http", "127.0.0.1:0", "--http-address-file",
      http_address_file};
  command.insert(command.end(), arguments.begin(), arguments.end());
  coordinator_ = &Launch("coordinator", std::move(command), directory);
  WaitUntil([&] { return FileExists(address_file) || coordinator_->Ended(); });
  address_ = std::string(absl::StripSuffix(Slurp(address_file), "\n"));
  EXPECT_FALSE(address_.empty()) << coordinator_->Transcript();
  http_address_ = std::string(absl::StripSuffix(Slurp(http_address_file), "\n"));
  return *coordinator_;
}

TestProcess& TestCluster::StartWorker(const std::string& name, std::vector<std::string> arguments) {
  // One thread and a fixed budget, so that the machine's size and load change nothing.
  std::vector<std::string> command = {"worker",      "--coordinator", address_, "--listen",
                                      "127.0.0.1:0", "--name",        name,     "--threads",
                                      "1",           "--ram",         "256MiB"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return Launch(name, std::move(command));
}

void TestCluster::Start(int num_workers, std::vector<std::string> coordinator_arguments) {
  std::vector<std::string> arguments = {"--workers", absl::StrCat(num_workers)};
  arguments.insert(arguments.end(), coordinator_arguments.begin(), coordinator_arguments.end());
  StartCoordinator(std::move(arguments));
  for (int i = 0; i < num_workers; ++i) {
    TestProcess& worker = StartWorker(absl::StrCat("box-", i));
    worker.WaitForErr("joined");  // before the next, so that box-i gets stage i
  }
  WaitForStatus("serving");
}

TestProcess& TestCluster::worker(const std::string& name) {
  for (Entry& entry : processes_) {
    if (entry.name == name) return *entry.process;
  }
  CARAVAN_CHECK(false);
}

TestProcess& TestCluster::StartRun(const std::string& prompt, std::vector<std::string> arguments) {
  std::vector<std::string> command = {"run", "--coordinator", address_, "--connect-timeout", "60"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.push_back("--");
  command.push_back(prompt);
  return Launch("run", std::move(command));
}

TestProcess& TestCluster::StartLongRun(const std::vector<std::string>& arguments) {
  // Nearly even odds for all 2048 tokens; with this seed the stop token is not drawn for long.
  std::vector<std::string> all = {"--temperature", "100", "--seed", "1"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  TestProcess& run = StartRun("hi", std::move(all));
  run.WaitForOut("");
  return run;
}

void TestCluster::ExpectAnswers() {
  TestProcess& run = StartRun("What is 75 + 4050?");
  EXPECT_EQ(run.Wait(), 0) << run.Err();
  EXPECT_THAT(run.Out(), ::testing::EndsWith("\n75 + 4050 = 4125\n"));
}

std::string TestCluster::Status() {
  TestProcess& status =
      Launch("status", {"status", "--coordinator", address_, "--connect-timeout", "60"});
  EXPECT_EQ(status.Wait(), 0) << status.Err();
  std::string text = status.Out();
  processes_.pop_back();  // it is asked again and again
  return text;
}

void TestCluster::WaitForStatus(const std::function<bool(const std::string&)>& wanted) {
  std::string last;
  EXPECT_TRUE(WaitUntil([&] { return wanted(last = Status()); })) << last;
}

void TestCluster::WaitForStatus(const std::string& text) {
  WaitForStatus([&](const std::string& status) { return absl::StrContains(status, text); });
}

}  // namespace caravan
