// What users and survivors see when a process of the cluster ends, dies or hangs.

#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::StartsWith;

/// The run ended because somebody who is needed is not there, and said in one sentence who.
void ExpectUnavailable(TestProcess& run, const std::string& who) {
  EXPECT_EQ(run.Wait(), 3);
  const std::string error = run.Err();
  EXPECT_THAT(error, AllOf(StartsWith("caravan: "), HasSubstr(who)));
  EXPECT_EQ(error.find('\n'), error.size() - 1) << error;
}

TEST(FailureTest, ControlCCancelsTheJob) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun();
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130);
  EXPECT_EQ(run.Err(), "caravan: job 1 is cancelled\n");
  cluster.WaitForStatus("no jobs\n");
  cluster.ExpectAnswers();
}

TEST(FailureTest, AKilledClientsJobIsCancelled) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun();
  run.Signal(SIGKILL);
  run.Wait();
  cluster.WaitForStatus("no jobs\n");
  cluster.ExpectAnswers();
}

TEST(FailureTest, AWorkerThatIsToldToStopLeavesAndTheOtherTakesOver) {
  TestCluster cluster;
  cluster.Start(2);
  cluster.worker("box-1").Signal(SIGTERM);
  EXPECT_EQ(cluster.worker("box-1").Wait(), 0);
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving (plan 2)") && !absl::StrContains(status, "box-1");
  });
  EXPECT_THAT(cluster.Status(), ContainsRegex("box-0 .* embedding, 0\\.\\.5, head "));
  cluster.ExpectAnswers();
}

TEST(FailureTest, WorkersJoinTheNextCoordinatorOnTheSameAddress) {
  TestCluster cluster;
  cluster.Start(2);
  const std::string address = cluster.address();
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
  for (const char* name : {"box-0", "box-1"}) {
    cluster.worker(name).WaitForErr("dismissed");
    EXPECT_FALSE(cluster.worker(name).Ended());
  }
  cluster.StartCoordinator({"--workers", "2", "--listen", address});
  cluster.WaitForStatus("serving");
  cluster.ExpectAnswers();
}

TEST(FailureTest, WorkersGiveUpWhenNoCoordinatorComesBack) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  TestProcess& worker = cluster.StartWorker("box", {"--connect-timeout", "0.3"});
  worker.WaitForErr("joined");
  const std::string address = cluster.address();
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
  EXPECT_EQ(worker.Wait(), 3);
  EXPECT_THAT(worker.Err(),
              HasSubstr(absl::StrCat("caravan: no coordinator answers at ", address, " within ")));
}

class KilledWorkerTest : public ::testing::TestWithParam<std::string> {};

TEST_P(KilledWorkerTest, FailsTheRunningJobsByNameAndTheRestServesOn) {
  TestCluster cluster;
  cluster.Start(3);
  std::vector<TestProcess*> runs;
  for (int i = 0; i < 3; ++i) runs.push_back(&cluster.StartLongRun());
  cluster.worker(GetParam()).Signal(SIGKILL);
  for (TestProcess* run : runs) ExpectUnavailable(*run, absl::StrCat("(", GetParam(), ")"));

  cluster.ExpectAnswers();  // waits for the plan of the survivors
  EXPECT_THAT(cluster.Status(), ::testing::Not(HasSubstr(GetParam())));
  cluster.StartWorker("spare");
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving (plan 3)") && absl::StrContains(status, "spare");
  });
  cluster.ExpectAnswers();
}

INSTANTIATE_TEST_SUITE_P(FirstMiddleLast, KilledWorkerTest,
                         ::testing::Values("box-0", "box-1", "box-2"),
                         [](const auto& info) { return "Stage" + info.param.substr(4); });

TEST(FailureTest, AKilledCoordinatorEndsTheRun) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun();
  cluster.coordinator().Signal(SIGKILL);
  ExpectUnavailable(run, cluster.address());
}

TEST(FailureTest, AStoppedCoordinatorTellsItsClients) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun();
  cluster.coordinator().Signal(SIGTERM);
  ExpectUnavailable(run, "the coordinator is shutting down");
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
}

TEST(FailureTest, AWorkerThatHangsIsFoundByItsSilence) {
  TestCluster cluster;
  cluster.Start(2, {"--heartbeat-timeout", "1"});
  TestProcess& run = cluster.StartLongRun();
  TestProcess& hung = cluster.worker("box-1");
  hung.Signal(SIGSTOP);
  ExpectUnavailable(run, "(box-1)");
  EXPECT_THAT(run.Err(), HasSubstr("not heard of for "));
  cluster.ExpectAnswers();
  // Awake again, it learns that it was taken for dead, and joins anew.
  hung.Signal(SIGCONT);
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving") && absl::StrContains(status, "box-1");
  });
  cluster.ExpectAnswers();
}

TEST(FailureTest, ARunWithoutWorkersFailsWithWhatIsMissing) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2", "--worker-timeout", "0.5"});
  cluster.StartWorker("only").WaitForErr("joined");
  ExpectUnavailable(cluster.StartRun("hi"), "0.5 s: waiting for 1 more worker to join");
}

TEST(FailureTest, AWorkerWithoutTheModelIsLeftOutAndTheRestServes) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  cluster.StartWorker("good");
  cluster.StartWorker("bad", {"--model", "/nowhere"});
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving; left out: worker bad: /nowhere/config.json");
  });
  EXPECT_THAT(cluster.Status(), ContainsRegex("bad .* spare "));
  cluster.ExpectAnswers();
}

TEST(FailureTest, TooLittleMemoryIsSaidInNumbers) {
  TestCluster cluster;
  cluster.StartCoordinator({"--worker-timeout", "0.5"});
  cluster.StartWorker("small", {"--ram", "1MiB"}).WaitForErr("joined");
  const std::string why = "but the worker offers 1.00 MiB";
  cluster.WaitForStatus(why);
  ExpectUnavailable(cluster.StartRun("hi"), why);
}

}  // namespace
}  // namespace caravan
