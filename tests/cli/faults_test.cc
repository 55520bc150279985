// Random faults under load: three workers in network namespaces of their own are killed, frozen,
// cut off, slowed down and replaced, and no job notices more than a pause. CARAVAN_FAULTS says how
// many faults, CARAVAN_FAULT_SEED repeats a run. docs/reliability.md has the figures.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/box_network.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kWorkers = 3;
constexpr int kFaults = kSanitized ? 6 : 15;
constexpr absl::Duration kHeartbeatTimeout = absl::Seconds(5);  // the default
// What a busy machine may take to notice a timer that has run out.
constexpr absl::Duration kSlack = absl::Seconds(kSanitized ? 20 : 3);

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  int64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

/// The coordinator's log, as it grows.
class EventLog {
 public:
  struct Event {
    absl::Time at;
    size_t index;  // in the log
  };

  explicit EventLog(const std::string& path) : in_(path) {}

  /// Where the next event will stand.
  size_t end() {
    std::string line;
    in_.clear();
    while (std::getline(in_, line)) {
      partial_ += line;
      if (in_.eof()) break;  // the rest of the line is still to come
      lines_.push_back(std::exchange(partial_, ""));
    }
    return lines_.size();
  }

  /// The first event from `begin` on of that name whose line has `text`.
  std::optional<Event> Find(absl::string_view name, absl::string_view text, size_t begin) {
    const size_t size = end();
    for (size_t i = begin; i < size; ++i) {
      if (Matches(i, name, text)) return At(i);
    }
    return std::nullopt;
  }
  std::optional<Event> FindLast(absl::string_view name, absl::string_view text = "") {
    for (size_t i = end(); i-- > 0;) {
      if (Matches(i, name, text)) return At(i);
    }
    return std::nullopt;
  }
  const std::string& line(const Event& event) const { return lines_[event.index]; }

 private:
  bool Matches(size_t i, absl::string_view name, absl::string_view text) const {
    return absl::StrContains(lines_[i], absl::StrCat(" ", name, " ")) &&
           absl::StrContains(lines_[i], text);
  }
  Event At(size_t i) const {
    Event event = {absl::InfinitePast(), i};
    EXPECT_TRUE(absl::ParseTime(absl::RFC3339_full, lines_[i].substr(0, lines_[i].find(' ')),
                                &event.at, nullptr))
        << lines_[i];
    return event;
  }

  std::ifstream in_;
  std::string partial_;
  std::vector<std::string> lines_;
};

/// Clients that ask the same few questions again and again, some at a time.
class Load {
 public:
  explicit Load(TestCluster* cluster) : cluster_(cluster) {}

  /// Asks each once, and takes the answers for right.
  void LearnReplies() {
    for (const std::vector<std::string>& question : kQuestions) runs_.push_back(Ask(question));
    for (TestProcess* run : runs_) {
      EXPECT_EQ(run->Wait(), 0) << run->Transcript();
      replies_.push_back(run->Out());
    }
    Tend();
  }

  /// Looks at every answer that has come to its end, and asks its question again.
  void Tend() {
    for (size_t i = 0; i < runs_.size(); ++i) {
      if (!runs_[i]->Ended()) continue;
      Check(i);
      if (!leaving_) runs_[i] = Ask(kQuestions[i]);
    }
  }
  void Finish() {
    leaving_ = true;
    for (size_t i = 0; i < runs_.size(); ++i) {
      runs_[i]->Wait();
      Check(i);
    }
  }

  /// Bytes of answers so far: every token adds some, or one of the next few does.
  size_t Bytes() const {
    size_t bytes = finished_bytes_;
    for (TestProcess* run : runs_) {
      std::error_code ignored;
      const auto size = std::filesystem::file_size(run->out_path(), ignored);
      if (!ignored) bytes += size;
    }
    return bytes;
  }
  int finished() const { return finished_; }

 private:
  // Noise at a high temperature, whose end comes late; a prompt that takes long to prefill; a sum.
  static const std::vector<std::vector<std::string>> kQuestions;

  TestProcess* Ask(const std::vector<std::string>& question) {
    std::vector<std::string> arguments(question.begin() + 1, question.end());
    return &cluster_->StartRun(question[0], arguments);
  }
  void Check(size_t i) {
    TestProcess& run = *runs_[i];
    EXPECT_EQ(run.Wait(), 0) << run.Transcript();
    EXPECT_EQ(run.Out(), replies_[i]) << run.Transcript();
    EXPECT_THAT(run.Err(), Not(HasSubstr("broke off")));
    finished_bytes_ += run.Out().size();
    ++finished_;
  }

  TestCluster* const cluster_;
  std::vector<TestProcess*> runs_;    // by question
  std::vector<std::string> replies_;  // the same
  size_t finished_bytes_ = 0;
  int finished_ = 0;
  bool leaving_ = false;
};

std::string LongPrompt() {
  std::string prompt;
  for (int i = 0; i < 60; ++i) absl::StrAppend(&prompt, "What is ", i * 37, " + ", i * i, "? ");
  return prompt;
}

const std::vector<std::vector<std::string>> Load::kQuestions = {
    {"hi", "--temperature", "100", "--seed", "1", "--max-tokens", "1500"},
    {"hi", "--temperature", "100", "--seed", "1", "--max-tokens", "700"},
    {LongPrompt(), "--temperature", "100", "--seed", "3", "--max-tokens", "300"},
    {"What is 75 + 4050?", "--temperature", "0.8", "--seed", "4"},
};

enum class Fault {
  kKill,     // SIGKILL; a supervisor starts it anew later
  kRestart,  // SIGKILL; a supervisor starts it anew at once
  kLeave,    // SIGTERM; started anew later
  kFreeze,   // SIGSTOP; SIGCONT later
  kUnplug,   // its cable; plugged in again later
  kPower,    // the whole box goes without a word, and comes back at once
  kSlow,     // its cable carries little for a while
};
constexpr std::array kAllFaults = {Fault::kKill,   Fault::kRestart, Fault::kLeave, Fault::kFreeze,
                                   Fault::kUnplug, Fault::kPower,   Fault::kSlow};

const char* Name(Fault fault) {
  switch (fault) {
    case Fault::kKill:
      return "killed";
    case Fault::kRestart:
      return "restarted";
    case Fault::kLeave:
      return "stopped";
    case Fault::kFreeze:
      return "frozen";
    case Fault::kUnplug:
      return "unplugged";
    case Fault::kPower:
      return "power cut";
    case Fault::kSlow:
      return "slow";
  }
  return "";
}

/// How long each of some events took, for people.
class Distribution {
 public:
  void Add(absl::Duration duration) { durations_.push_back(duration); }
  std::string Text() {
    if (durations_.empty()) return absl::StrFormat("%24s", "-");
    std::sort(durations_.begin(), durations_.end());
    const auto at = [&](double share) {
      const auto last = static_cast<double>(durations_.size() - 1);
      return absl::ToDoubleSeconds(durations_[static_cast<size_t>(share * last + 0.5)]);
    };
    return absl::StrFormat("%8.2f%8.2f%8.2f", at(0.5), at(0.9), at(1.0));
  }
  size_t size() const { return durations_.size(); }

 private:
  std::vector<absl::Duration> durations_;
};

class FaultsTest : public ::testing::Test {
 protected:
  struct Box {
    std::string name;
    TestProcess* worker = nullptr;
    std::optional<Fault> fault;  // that it suffers from
    size_t started = 0;          // in the log, before its present life began
  };
  struct Times {
    Distribution found;
    Distribution recovered;
  };

  void SetUp() override {
    auto network = BoxNetwork::Create(kWorkers + 1);
    if (!network.ok()) GTEST_SKIP() << "no network namespaces here: " << network.status();
    network_ = *std::move(network);
    cluster_ = std::make_unique<TestCluster>(
        [this](const std::string& name) { return network_->Enter(BoxOf(name)); });
    cluster_->StartCoordinator({"--workers", absl::StrCat(kWorkers), "--rejoin-delay", "0",
                                "--insecure", "--listen",
                                absl::StrCat(network_->host(0), ":7000")});
    log_.emplace(cluster_->coordinator().err_path());
    for (int i = 0; i < kWorkers; ++i) {
      boxes_[i].name = absl::StrCat("box-", i);
      Start(i);
      boxes_[i].worker->WaitForErr("joined");
    }
    ASSERT_FALSE(HasFailure());
    load_.emplace(cluster_.get());
    ASSERT_TRUE(WaitUntil([&] { return Settled(); }));
    load_->LearnReplies();
  }
  void TearDown() override {
    load_.reset();
    cluster_.reset();
  }

  /// The coordinator and the clients are in the first one.
  static int BoxOf(const std::string& name) {
    return absl::StartsWith(name, "box-") ? name.back() - '0' + 1 : 0;
  }

  void Start(int i) {
    Box& box = boxes_[i];
    box.started = log_->end();
    box.worker = &cluster_->StartWorker(
        box.name, {"--insecure", "--listen", absl::StrCat(network_->host(i + 1), ":7000"),
                   "--connect-timeout", "120"});
  }

  /// Waits, while clients ask on.
  bool WaitFor(const std::string& what, const std::function<bool()>& condition) {
    const bool came = WaitUntil([&] {
      load_->Tend();
      return condition() || HasFailure();
    });
    EXPECT_TRUE(came) << "waited in vain for " << what;
    return came && !HasFailure();
  }

  std::string InLog(int i) const { return absl::StrCat("(", boxes_[i].name, ")"); }
  bool IsMember(int i) {
    const auto joined = log_->FindLast("worker_joined", InLog(i));
    if (!joined.has_value() || joined->index < boxes_[i].started) return false;
    // By its number too: the loss of a life before may be noticed later than it joined.
    const std::string& line = log_->line(*joined);
    const size_t who = line.find("worker=");
    return !log_->Find("worker_lost", line.substr(who, line.find(')') - who), joined->index);
  }
  int Healthy() const {
    return static_cast<int>(std::count_if(boxes_.begin(), boxes_.end(),
                                          [](const Box& box) { return !box.fault.has_value(); }));
  }
  /// All healthy workers serve, and perhaps slow ones.
  bool Settled() {
    const auto serving = log_->FindLast("pipeline_serving");
    const auto ended = log_->FindLast("pipeline_ended");
    if (!serving.has_value() || (ended.has_value() && ended->index > serving->index)) return false;
    const auto slow = std::count_if(boxes_.begin(), boxes_.end(),
                                    [](const Box& box) { return box.fault == Fault::kSlow; });
    for (int stages = Healthy(); stages <= Healthy() + slow; ++stages) {
      if (absl::StrContains(log_->line(*serving), absl::StrCat(" stages=", stages, " ")))
        return true;
    }
    return false;
  }
  bool WaitForTokens(uint64_t bytes) {
    const size_t begin = load_->Bytes();
    return WaitFor("tokens", [&] { return load_->Bytes() > begin + bytes; });
  }
  /// From the next plan that serves, by what comes after `begin`.
  bool WaitForRecovery(size_t begin) {
    return WaitFor("a plan that serves",
                   [&] { return log_->Find("pipeline_serving", "", begin).has_value(); }) &&
           WaitForTokens(0);
  }

  void Inject(int i, Fault fault) {
    Box& box = boxes_[i];
    const size_t begin = log_->end();
    const absl::Time at = absl::Now();
    switch (fault) {
      case Fault::kKill:
      case Fault::kRestart:
        box.worker->Signal(SIGKILL);
        EXPECT_EQ(box.worker->Wait(), 128 + SIGKILL);
        if (fault == Fault::kRestart) Start(i);
        break;
      case Fault::kLeave:
        box.worker->Signal(SIGTERM);
        EXPECT_EQ(box.worker->Wait(), 0);
        break;
      case Fault::kFreeze:
        box.worker->Signal(SIGSTOP);
        break;
      case Fault::kUnplug:
        network_->Unplug(i + 1);
        break;
      case Fault::kPower:
        network_->Unplug(i + 1);
        box.worker->Signal(SIGKILL);
        EXPECT_EQ(box.worker->Wait(), 128 + SIGKILL);
        network_->Replace(i + 1);
        Start(i);
        break;
      case Fault::kSlow:
        network_->Shape(i + 1, std::array{1000, 2000, 4000}[random_() % 3]);
        break;
    }
    const bool heals_itself = fault == Fault::kRestart || fault == Fault::kPower;
    if (!heals_itself) box.fault = fault;
    Times& times = times_[Name(fault)];
    if (fault == Fault::kSlow) {
      if (WaitForTokens(0)) times.recovered.Add(absl::Now() - at);
      return;
    }
    if (!WaitFor("the loss of a worker",
                 [&] { return log_->Find("worker_lost", InLog(i), begin).has_value(); })) {
      return;
    }
    const EventLog::Event lost = *log_->Find("worker_lost", InLog(i), begin);
    // The log counts milliseconds.
    times.found.Add(std::max(lost.at - at, absl::ZeroDuration()));
    // In two heartbeats at the latest.
    EXPECT_LT(lost.at - at, kHeartbeatTimeout + kSlack) << Name(fault);
    if (WaitForRecovery(lost.index)) times.recovered.Add(absl::Now() - at);
  }

  /// The box is as good as before; `watch`: and is waited for.
  void Heal(int i, bool watch) {
    Box& box = boxes_[i];
    const Fault fault = *box.fault;
    box.fault.reset();
    const size_t begin = log_->end();
    const absl::Time at = absl::Now();
    switch (fault) {
      case Fault::kKill:
      case Fault::kLeave:
        Start(i);
        break;
      case Fault::kFreeze:
        box.worker->Signal(SIGCONT);
        break;
      case Fault::kUnplug:
        network_->Plug(i + 1);
        break;
      case Fault::kSlow:
        network_->Unshape(i + 1);
        break;
      case Fault::kRestart:
      case Fault::kPower:
        break;
    }
    // It may be that a slow one was never missed.
    if (!watch || fault == Fault::kSlow) return;
    if (!WaitFor("a worker that joins anew",
                 [&] { return log_->Find("worker_joined", InLog(i), begin).has_value(); })) {
      return;
    }
    const EventLog::Event joined = *log_->Find("worker_joined", InLog(i), begin);
    Times& times = times_[absl::StrCat("  back: ", Name(fault))];
    times.found.Add(std::max(joined.at - at, absl::ZeroDuration()));
    if (WaitForRecovery(joined.index)) times.recovered.Add(absl::Now() - at);
  }

  int RandomBox(bool faulty) {
    std::vector<int> candidates;
    for (int i = 0; i < kWorkers; ++i) {
      if (boxes_[i].fault.has_value() == faulty) candidates.push_back(i);
    }
    return candidates[random_() % candidates.size()];
  }

  void PrintTimes() {
    std::cout << absl::StrFormat("%-20s%6s%24s%24s\n", "seconds", "times", "found: 50%, 90%, max",
                                 "next token: the same");
    for (auto& [name, times] : times_) {
      std::cout << absl::StrFormat("%-20s%6d%s%s\n", name, times.recovered.size(),
                                   times.found.Text(), times.recovered.Text());
    }
  }

  std::unique_ptr<BoxNetwork> network_;  // before all that runs in it
  std::unique_ptr<TestCluster> cluster_;
  std::optional<EventLog> log_;
  std::optional<Load> load_;
  std::array<Box, kWorkers> boxes_;
  std::mt19937_64 random_;
  std::map<std::string, Times> times_;
};

TEST_F(FaultsTest, JobsOutliveRandomFaults) {
  const int64_t num_faults = FromEnvironment("CARAVAN_FAULTS", kFaults);
  const int64_t seed = FromEnvironment("CARAVAN_FAULT_SEED", std::random_device()());
  std::cout << "seed " << seed << std::endl;
  random_.seed(static_cast<uint64_t>(seed));
  const absl::Time begin = absl::Now();
  for (int64_t injected = 0; injected < num_faults && !HasFailure();) {
    ASSERT_TRUE(WaitForTokens(random_() % 200));
    const int healthy = Healthy();
    if (healthy < kWorkers && (healthy == 1 || random_() % 2 == 0)) {
      Heal(RandomBox(/*faulty=*/true), /*watch=*/random_() % 4 != 0);
      continue;
    }
    const int i = RandomBox(/*faulty=*/false);
    const Fault fault = kAllFaults[random_() % kAllFaults.size()];
    // Mostly one thing at a time, else into whatever is going on.
    const bool settled = random_() % 4 != 0;
    ASSERT_TRUE(WaitFor("the victim", [&] { return IsMember(i) && (Settled() || !settled); }));
    std::cout << absl::FormatDuration(absl::Now() - begin) << " " << ++injected << ": "
              << boxes_[i].name << " is " << Name(fault) << std::endl;
    Inject(i, fault);
  }
  for (int i = 0; i < kWorkers; ++i) {
    if (boxes_[i].fault.has_value()) Heal(i, /*watch=*/true);
  }
  if (!HasFailure()) {
    EXPECT_TRUE(WaitFor("all workers", [&] { return Settled(); }));
    load_->Finish();
    cluster_->ExpectAnswers();
  }
  PrintTimes();
  std::cout << load_->finished() << " replies, " << absl::FormatDuration(absl::Now() - begin)
            << std::endl;
}

}  // namespace
}  // namespace caravan
