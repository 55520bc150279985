// A cluster that nothing goes wrong in: replies, status, growth, weights over the network, memory.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/peak_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/questions.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";
constexpr char kOtherModel[] = CARAVAN_SOURCE_DIR "/tests/data/goldens/v3-like";

class ClusterOfTest : public ::testing::TestWithParam<int> {};

TEST_P(ClusterOfTest, StreamsThoughtAndAnswerOfTheReference) {
  TestCluster cluster;
  cluster.Start(GetParam());
  ExpectReplies(cluster, Questions(4));
  TestProcess& run = cluster.StartRun("What is 75 + 4050?");
  EXPECT_EQ(run.Wait(), 0);
  EXPECT_THAT(run.Err(), ContainsRegex("^job [0-9]+: 15 prompt tokens, 70 generated \\(the model "
                                       "ended\\); first token after [0-9.]+ s, then [0-9.]+ "
                                       "tokens/s\n$"));
}

INSTANTIATE_TEST_SUITE_P(Workers, ClusterOfTest, ::testing::Values(1, 2, 3));

TEST(ClusterTest, EightJobsAtOnceReplyAsAlone) {
  TestCluster cluster;
  cluster.Start(2);
  ExpectRepliesTogether(cluster, Questions(8));
}

TEST(ClusterTest, DraftsChangeNoReply) {
  TestCluster cluster;
  cluster.Start(2, {"--speculate", "mtp"});
  EXPECT_THAT(cluster.Status(), ContainsRegex("box-1 .* ready +4\\.\\.5, head, MTP "));
  ExpectReplies(cluster, Questions(2));
  ExpectRepliesTogether(cluster, Questions(8));
}

TEST(ClusterTest, AReplyIsCutAtMaxTokens) {
  TestCluster cluster;
  cluster.Start(1);
  TestProcess& run = cluster.StartRun("What is 75 + 4050?", {"--max-tokens", "7"});
  EXPECT_EQ(run.Wait(), 0);
  EXPECT_THAT(run.Err(), HasSubstr("7 generated (cut at the limit)"));
}

TEST(ClusterTest, APromptMayComeFromStandardInput) {
  TestCluster cluster;
  cluster.Start(1);
  const std::string prompt = cluster.dir().Write("prompt", "What is 75 + 4050?");
  TestProcess& run =
      cluster.Launch("run", {"run", "--coordinator", cluster.address(), "-"}, "", prompt);
  EXPECT_EQ(run.Wait(), 0) << run.Err();
  EXPECT_THAT(run.Out(), HasSubstr("75 + 4050 = 4125\n"));
}

TEST(ClusterTest, StatusShowsWorkersLayersAndTheRunningJob) {
  TestCluster cluster;
  cluster.Start(2);
  const std::string idle = cluster.Status();
  EXPECT_THAT(idle, HasSubstr(kModel));
  EXPECT_THAT(idle, ContainsRegex("pipeline +serving \\(plan 1\\)"));
  EXPECT_THAT(idle, ContainsRegex("box-0 +127.0.0.1:[0-9]+ +cpu +ready +embedding, 0\\.\\.2 "));
  EXPECT_THAT(idle, ContainsRegex("box-1 +127.0.0.1:[0-9]+ +cpu +ready +3\\.\\.5, head "));
  EXPECT_THAT(idle, HasSubstr("no jobs\n"));

  TestProcess& run = cluster.StartLongRun();
  EXPECT_THAT(cluster.Status(), ContainsRegex("\n1 +running +4 +[0-9]+ +[0-9.]+ s\n"));
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130);
  cluster.WaitForStatus("no jobs\n");
}

/// A box that is so slow that hops take no time beside its stages.
std::string SlowBox(const std::string& name, double bytes_per_s) {
  return absl::StrFormat(
      R"({"name": "%s", "cpu": {"cores": 1, "isa": "avx2", "multiply_adds_per_second": %g,
                                "attention_multiply_adds_per_second": %g},
          "memory": {"total_bytes": 1073741824, "worker_bytes": 268435456,
                     "read_bytes_per_second": %g},
          "disk": {"bytes": 1073741824, "read_bytes_per_second": 1e9},
          "network": {"bytes_per_second": 1e8, "latency_seconds": 1e-4}})",
      name, 4 * bytes_per_s, bytes_per_s, bytes_per_s);
}

/// What the first group of `pattern` is mapped to by its second and third, in all of its matches.
std::map<std::string, std::string> LayersByBox(const std::string& text, const char* pattern) {
  std::map<std::string, std::string> layers;
  const std::regex regex(pattern);
  for (auto it = std::sregex_iterator(text.begin(), text.end(), regex);
       it != std::sregex_iterator(); ++it) {
    layers[(*it)[1]] = absl::StrCat((*it)[2].str(), "..", (*it)[3].str());
  }
  return layers;
}

TEST(ClusterTest, TheSplitIsTheOneThatPlanForetells) {
  TestCluster cluster;
  const std::string fast = cluster.dir().Write("box-1.json", SlowBox("box-1", 4e7));
  const std::string slow = cluster.dir().Write("box-0.json", SlowBox("box-0", 1e7));
  const std::string boxes =
      cluster.dir().Write("boxes.json", R"([{"file": "box-0.json"}, {"file": "box-1.json"}])");
  for (const std::string aim : {"bulk", "interactive"}) {
    TestProcess& plan =
        cluster.Launch("plan", {"plan", "--model", kModel, "--boxes", boxes, "--jobs", "8",
                                "--context", "256", "--kv", "f32", "--for", aim});
    ASSERT_EQ(plan.Wait(), 0) << plan.Transcript();
    const auto foretold = LayersByBox(plan.Out(), R"(\| (box-[01]) \| (\d+)\.\.(\d+) \|)");
    // A lone stream goes to the fast box alone, many jobs are shared.
    ASSERT_EQ(foretold.size(), aim == "bulk" ? 2u : 1u) << plan.Out();

    TestCluster real;
    real.StartCoordinator(
        {"--workers", "2", "--context", "256", "--kv-tokens", "2048", "--for", aim});
    real.StartWorker("box-0", {"--box", slow}).WaitForErr("joined");
    real.StartWorker("box-1", {"--box", fast});
    real.WaitForStatus("serving");
    const std::string status = real.Status();
    EXPECT_EQ(LayersByBox(status, R"((box-[01]) .* (\d+)\.\.(\d+))"), foretold) << status;
    EXPECT_THAT(status, ContainsRegex("foretold +[0-9.]+ tokens/s of 8 jobs"));
    if (aim == "interactive") {
      EXPECT_THAT(status, HasSubstr("spare: worker 1 (box-0), with which it would not be faster"));
    }
    ExpectReplies(real, Questions(1));
  }
}

TEST(ClusterTest, ABoxIsMeasuredOnceAndKept) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  const std::string file = cluster.dir().File("box.json");
  for (const bool is_first : {true, false}) {
    TestProcess& worker = cluster.StartWorker("box-0", {"--box", file});
    ASSERT_TRUE(worker.WaitForErr("joined"));
    EXPECT_EQ(absl::StrContains(worker.Err(), "measuring_box"), is_first) << worker.Err();
    cluster.WaitForStatus("serving");
    EXPECT_THAT(cluster.Status(), HasSubstr("foretold"));
    EXPECT_THAT(Slurp(file), HasSubstr("multiply_adds_per_second"));
    worker.Signal(SIGTERM);
    EXPECT_EQ(worker.Wait(), 0);
  }
}

TEST(ClusterTest, AThirdWorkerThatJoinsTakesLayersAndRunningJobsGoOn) {
  TestCluster cluster;
  cluster.Start(2);
  const std::vector<std::string> to_the_end = {"--max-tokens", kSanitized ? "300" : "2000"};
  TestProcess& undisturbed = cluster.StartLongRun(to_the_end);
  EXPECT_EQ(undisturbed.Wait(), 0) << undisturbed.Transcript();
  TestProcess& run = cluster.StartLongRun(to_the_end);
  cluster.StartWorker("late");
  cluster.WaitForStatus(
      [](const std::string& status) { return absl::StrContains(status, "serving (plan 2)"); });
  EXPECT_THAT(cluster.Status(), ContainsRegex("late .* ready .*head"));
  EXPECT_FALSE(run.Ended()) << "it was over before the plan changed";
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), undisturbed.Out());
  ExpectReplies(cluster, Questions(2));
}

TEST(ClusterTest, AWorkerIsDrainedWhileAJobRuns) {
  TestCluster cluster;
  cluster.Start(2);
  const auto drain = [&cluster](const std::vector<std::string>& arguments) -> TestProcess& {
    std::vector<std::string> all = {"drain", "--coordinator", cluster.address()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    TestProcess& drain = cluster.Launch("drain", all);
    drain.Wait();
    return drain;
  };
  const std::vector<std::string> to_the_end = {"--max-tokens", kSanitized ? "300" : "2000"};
  TestProcess& undisturbed = cluster.StartLongRun(to_the_end);
  EXPECT_EQ(undisturbed.Wait(), 0) << undisturbed.Transcript();
  TestProcess& run = cluster.StartLongRun(to_the_end);
  TestProcess& drained = drain({"box-0"});
  EXPECT_EQ(drained.Wait(), 0) << drained.Transcript();
  EXPECT_EQ(drained.Out(), "box-0 holds no stage: it can be stopped\n");
  EXPECT_THAT(cluster.Status(), ContainsRegex("serving; drained: worker 1 .box-0. .plan 2."));
  EXPECT_THAT(cluster.Status(), ContainsRegex("box-0 .* drained "));
  EXPECT_FALSE(run.Ended()) << "it was over before the plan changed";
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), undisturbed.Out());

  TestProcess& last = drain({"box-1"});
  EXPECT_EQ(last.Wait(), 1);
  EXPECT_THAT(last.Err(), HasSubstr("the others cannot do without worker 2 (box-1): "));
  TestProcess& nobody = drain({"box-7"});
  EXPECT_EQ(nobody.Wait(), 2);
  EXPECT_EQ(nobody.Err(), "caravan: no worker is called box-7\n");
  EXPECT_EQ(drain({"box-0", "--undo"}).Out(), "box-0 may get a stage again\n");
  cluster.WaitForStatus("serving (plan 3)");
}

TEST(ClusterTest, AWorkerWithoutTheModelsFilesReadsThemFromTheCoordinator) {
  TestCluster cluster;
  // This path names another directory in each process: the files are the coordinator's alone.
  cluster.StartCoordinator({"--workers", "2"}, "/proc/self/cwd", kModel);
  TestProcess& first = cluster.StartWorker("first");
  TestProcess& second = cluster.StartWorker("second");
  ExpectReplies(cluster, Questions(2));
  EXPECT_THAT(first.Err(), HasSubstr("reading_weights_from_coordinator"));
  EXPECT_THAT(second.Err(), HasSubstr("reading_weights_from_coordinator"));
}

TEST(ClusterTest, ABrokenCopyIsSkippedAloud) {
  TestCluster cluster;
  const std::string copy = cluster.dir().File("model");
  std::filesystem::copy(kModel, copy);
  cluster.StartCoordinator({}, copy);
  std::ofstream(copy + "/config.json") << "{";  // The coordinator has read it.
  TestProcess& worker = cluster.StartWorker("box");
  ExpectReplies(cluster, Questions(1));
  EXPECT_THAT(worker.Err(), HasSubstr("local_copy_skipped directory=" + copy));
  EXPECT_THAT(worker.Err(), HasSubstr("reading_weights_from_coordinator"));
}

TEST(ClusterTest, AWorkerMayHaveACopyOfItsOwn) {
  TestCluster cluster;
  cluster.StartCoordinator({}, "/proc/self/cwd", kModel);
  TestProcess& worker = cluster.StartWorker("own", {"--model", kModel});
  ExpectReplies(cluster, Questions(1));
  EXPECT_THAT(worker.Err(), Not(HasSubstr("reading_weights_from_coordinator")));
}

TEST(ClusterTest, WithoutCardsHopsGoOverTcpAndNcclIsNotLoaded) {
  TestCluster cluster;
  cluster.Start(2);
  ExpectReplies(cluster, Questions(1));
  const std::string hop = "transport=tcp why=\"worker 1 (box-0) has no card\"";
  EXPECT_THAT(cluster.coordinator().Err(), HasSubstr(hop));
  EXPECT_THAT(cluster.worker("box-0").Err(), HasSubstr(hop));
  for (const char* name : {"box-0", "box-1"}) {
    const std::string libraries =
        Slurp(absl::StrCat("/proc/", cluster.worker(name).pid(), "/maps"));
    EXPECT_THAT(libraries, HasSubstr("libc.so"));
    EXPECT_THAT(libraries, Not(HasSubstr("libnccl")));
  }
}

TEST(ClusterTest, AWorkerWithAnotherModelIsRefusedOnBothSides) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  TestProcess& worker = cluster.StartWorker("odd", {"--model", kOtherModel});
  EXPECT_EQ(worker.Wait(), 1);
  const std::string why = "what --model names on worker odd is not the coordinator's model";
  EXPECT_THAT(worker.Err(), HasSubstr(why));
  EXPECT_THAT(cluster.coordinator().Err(), HasSubstr(why));
  cluster.StartWorker("even");
  cluster.ExpectAnswers();
}

TEST(ClusterTest, AWorkerKeepsToItsBudget) {
  // The budget's weights and KV cache, and 200 MiB for code, gRPC and buffers of a step.
  constexpr int64_t kBudget = 64 << 20;
  [[maybe_unused]] constexpr int64_t kLimit = kBudget + (200 << 20);
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  for (const char* name : {"one", "two"}) cluster.StartWorker(name, {"--ram", "64MiB"});
  ExpectRepliesTogether(cluster, Questions(8));
  ExpectRepliesTogether(cluster, Questions(8));
  for (const char* name : {"one", "two"}) {
    const int64_t peak = PeakMemory(cluster.worker(name).pid());
    EXPECT_GT(peak, 0);
    EXPECT_TRUE(kSanitized || peak <= kLimit) << name << ": " << peak;
  }
}

}  // namespace
}  // namespace caravan
