// What users and survivors see when a process of the cluster ends, dies or hangs.

#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

/// The run ended because somebody who is needed is not there, and said in one sentence who.
void ExpectUnavailable(TestProcess& run, const std::string& who) {
  EXPECT_EQ(run.Wait(), 3);
  const std::string error = run.Err();
  EXPECT_THAT(error, AllOf(StartsWith("caravan: "), HasSubstr(who)));
  EXPECT_EQ(error.find('\n'), error.size() - 1) << error;
}

// Of StartLongRun: long enough to be broken off in its midst, short enough to be awaited.
const std::vector<std::string>& LongReply() {
  static const auto* const arguments =
      new std::vector<std::string>{"--max-tokens", kSanitized ? "300" : "2000"};
  return *arguments;
}

/// The reply of StartLongRun(LongReply()) when nobody disturbs it.
std::string UndisturbedReply(TestCluster& cluster) {
  TestProcess& run = cluster.StartLongRun(LongReply());
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  return run.Out();
}

/// The run came to its end as if nothing had happened.
void ExpectUndisturbed(TestProcess& run, const std::string& reply) {
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), reply);
  EXPECT_THAT(run.Err(), Not(HasSubstr("broke off")));
}

/// The run broke off, said why, and went on to its end without losing or repeating anything.
void ExpectGoesOn(TestProcess& run, const std::string& why, const std::string& reply) {
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), reply);
  EXPECT_THAT(run.Err(), ContainsRegex(absl::StrCat("\nThe reply broke off \\(.*", why,
                                                    ".*\\); waiting to go on with it\\.\n")));
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

TEST_P(KilledWorkerTest, RunningRepliesGoOnOverTheRest) {
  TestCluster cluster;
  cluster.Start(3);
  const std::string reply = UndisturbedReply(cluster);
  std::vector<TestProcess*> runs;
  for (int i = 0; i < 3; ++i) runs.push_back(&cluster.StartLongRun(LongReply()));
  cluster.worker(GetParam()).Signal(SIGKILL);
  for (TestProcess* run : runs) ExpectUndisturbed(*run, reply);

  cluster.ExpectAnswers();
  EXPECT_THAT(cluster.Status(), Not(HasSubstr(GetParam())));
  cluster.StartWorker("spare");
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving (plan 3)") && absl::StrContains(status, "spare");
  });
  cluster.ExpectAnswers();
}

INSTANTIATE_TEST_SUITE_P(FirstMiddleLast, KilledWorkerTest,
                         ::testing::Values("box-0", "box-1", "box-2"),
                         [](const auto& info) { return "Stage" + info.param.substr(4); });

TEST(FailureTest, ARunGoesOnWithTheNextCoordinator) {
  TestCluster cluster;
  cluster.Start(2);
  const std::string reply = UndisturbedReply(cluster);
  TestProcess& run = cluster.StartLongRun(LongReply());
  cluster.coordinator().Signal(SIGKILL);
  EXPECT_EQ(cluster.coordinator().Wait(), 128 + SIGKILL);
  run.WaitForErr("waiting to go on");
  cluster.StartCoordinator({"--workers", "2", "--listen", cluster.address()});
  ExpectGoesOn(run, "", reply);
}

TEST(FailureTest, AKilledCoordinatorThatDoesNotComeBackEndsTheRun) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun({"--connect-timeout", "2"});
  cluster.coordinator().Signal(SIGKILL);
  EXPECT_EQ(run.Wait(), 3);
  EXPECT_THAT(run.Err(), EndsWith(absl::StrCat("\ncaravan: coordinator ", cluster.address(),
                                               " went away and was not back within 2 s\n")));
}

TEST(FailureTest, AStoppedCoordinatorTellsItsClients) {
  TestCluster cluster;
  cluster.Start(2);
  TestProcess& run = cluster.StartLongRun();
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
  run.WaitForErr("The reply broke off (the coordinator is shutting down)");
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130);
}

TEST(FailureTest, AWorkerThatHangsIsFoundByItsSilence) {
  TestCluster cluster;
  cluster.Start(2, {"--heartbeat-timeout", "2"});
  const std::string reply = UndisturbedReply(cluster);
  TestProcess& run = cluster.StartLongRun(LongReply());
  TestProcess& hung = cluster.worker("box-1");
  hung.Signal(SIGSTOP);
  ExpectUndisturbed(run, reply);
  EXPECT_THAT(cluster.coordinator().Err(), HasSubstr("not heard of for "));
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
