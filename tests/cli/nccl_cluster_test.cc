// Workers whose activations go from card to card by NCCL, most of them on one card, and the same
// over TCP. Skipped without a card, by the driver's words, and without NCCL, by the linker's.

#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/support/nccl_peer.h"
#include "tests/support/questions.h"
#include "tests/support/test_cluster.h"
#include "worker/nccl/nccl_library.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class NcclClusterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<int> cards = CountCudaDevices();
    if (!cards.ok()) GTEST_SKIP() << cards.status();
    num_cards_ = *cards;
    const absl::StatusOr<std::unique_ptr<NcclLibrary>> library = NcclLibrary::Load();
    if (!library.ok()) GTEST_SKIP() << library.status();
  }

  /// A worker on the first card. NCCL takes each for a host of its own.
  static TestProcess& StartCardWorker(TestCluster& cluster, const std::string& name,
                                      const std::vector<std::string>& arguments = {}) {
    BeNcclHost(name);
    std::vector<std::string> all = {"--device", "cuda:0", "--vram", "2GiB"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    TestProcess& worker = cluster.StartWorker(name, std::move(all));
    worker.WaitForErr("joined");  // before the next, so that box-i gets stage i
    return worker;
  }

  static void StartPair(TestCluster& cluster, const std::vector<std::string>& arguments = {},
                        const std::vector<std::string>& coordinator_arguments = {}) {
    std::vector<std::string> all = {"--workers", "2"};
    all.insert(all.end(), coordinator_arguments.begin(), coordinator_arguments.end());
    cluster.StartCoordinator(std::move(all));
    StartCardWorker(cluster, "box-0", arguments);
    StartCardWorker(cluster, "box-1", arguments);
    cluster.WaitForStatus("serving");
  }

  static std::string Libraries(TestProcess& process) {
    return Slurp(absl::StrCat("/proc/", process.pid(), "/maps"));
  }

  int num_cards_ = 0;
};

TEST_F(NcclClusterTest, RepliesAreThoseOfTheReference) {
  TestCluster cluster;
  StartPair(cluster, {"--transport", "nccl"});
  EXPECT_THAT(cluster.worker("box-0").Err(), HasSubstr("transport=nccl why=\"both have NCCL "));
  ExpectReplies(cluster, Questions(4));
  ExpectRepliesTogether(cluster, Questions(8));
  EXPECT_THAT(Libraries(cluster.worker("box-0")), HasSubstr("libnccl"));
}

TEST_F(NcclClusterTest, RepliesAreTheSameOverTcpForWhichNcclIsNotLoaded) {
  TestCluster cluster;
  StartPair(cluster, {"--transport", "tcp"});
  EXPECT_THAT(cluster.worker("box-0").Err(),
              HasSubstr("transport=tcp why=\"worker 1 (box-0) offers no NCCL\""));
  ExpectReplies(cluster, Questions(4));
  ExpectRepliesTogether(cluster, Questions(8));
  EXPECT_THAT(Libraries(cluster.worker("box-0")), Not(HasSubstr("libnccl")));
}

class KilledNcclWorkerTest : public NcclClusterTest,
                             public ::testing::WithParamInterface<std::string> {};

TEST_P(KilledNcclWorkerTest, ItsNeighbourGoesOnAloneAndByNcclWithTheNextOne) {
  TestCluster cluster;
  StartPair(cluster);
  TestProcess& run = cluster.StartLongRun({"--max-tokens", "200"});
  cluster.worker(GetParam()).Signal(SIGKILL);
  // In the midst of it the run goes on over who is left.
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_THAT(run.Err(), Not(HasSubstr("broke off")));
  ExpectReplies(cluster, Questions(1));
  StartCardWorker(cluster, "box-2");
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving (plan 3)") && absl::StrContains(status, "box-2");
  });
  EXPECT_THAT(cluster.coordinator().Err(),
              ::testing::ContainsRegex("hop_planned plan=3 .*transport=nccl"));
  ExpectReplies(cluster, Questions(2));
  ExpectRepliesTogether(cluster, Questions(8));
}

INSTANTIATE_TEST_SUITE_P(FirstLast, KilledNcclWorkerTest, ::testing::Values("box-0", "box-1"),
                         [](const auto& info) { return "Stage" + info.param.substr(4); });

TEST_F(NcclClusterTest, AWorkerThatHangsIsFoundByItsSilenceAndJoinsAnew) {
  TestCluster cluster;
  StartPair(cluster, {}, {"--heartbeat-timeout", "2"});
  TestProcess& run = cluster.StartLongRun({"--max-tokens", "200"});
  TestProcess& hung = cluster.worker("box-1");
  hung.Signal(SIGSTOP);
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_THAT(cluster.coordinator().Err(), HasSubstr("not heard of for "));
  hung.Signal(SIGCONT);
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving (plan 3)") && absl::StrContains(status, "box-1");
  });
  ExpectReplies(cluster, Questions(2));
}

TEST_F(NcclClusterTest, TwoCardsOfOneHostAreJoinedToo) {
  if (num_cards_ < 2) GTEST_SKIP() << "there is one card";
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  for (const int card : {0, 1}) {
    BeNcclHost("both");
    cluster
        .StartWorker(absl::StrCat("box-", card),
                     {"--device", absl::StrCat("cuda:", card), "--transport", "nccl"})
        .WaitForErr("joined");
  }
  cluster.WaitForStatus("serving");
  ExpectReplies(cluster, Questions(2));
  ExpectRepliesTogether(cluster, Questions(8));
  TestProcess& run = cluster.StartLongRun();
  cluster.worker("box-1").Signal(SIGKILL);
  cluster.WaitForStatus("serving (plan 2)");
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait(), 130);
  // Who takes no hop but by NCCL needs none when it is alone.
  ExpectReplies(cluster, Questions(1));
}

TEST_F(NcclClusterTest, OnOneCardOfOneHostAndBesideACpuHopsGoOverTcp) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "3"});
  StartCardWorker(cluster, "box-0");
  BeNcclHost("box-0");
  cluster.StartWorker("box-1", {"--device", "cuda:0", "--vram", "2GiB"}).WaitForErr("joined");
  cluster.StartWorker("box-2").WaitForErr("joined");
  cluster.WaitForStatus("serving");
  EXPECT_THAT(cluster.worker("box-0").Err(), HasSubstr("transport=tcp why=\"they share a card\""));
  EXPECT_THAT(cluster.worker("box-1").Err(), HasSubstr("worker 3 (box-2) has no card"));
  ExpectReplies(cluster, Questions(2));
}

TEST_F(NcclClusterTest, AHopThatCannotBeJoinedGoesOverTcp) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  StartCardWorker(cluster, "box-0");
  BeNcclHost("box-1");
  ::setenv("NCCL_SOCKET_IFNAME", "=nowhere0", 1);
  cluster.StartWorker("box-1", {"--device", "cuda:0", "--vram", "2GiB"}).WaitForErr("joined");
  cluster.WaitForStatus("serving (plan 2)");
  EXPECT_THAT(cluster.coordinator().Err(),
              ::testing::ContainsRegex("hop_planned plan=1 .*transport=nccl"));
  EXPECT_THAT(cluster.coordinator().Err(),
              ::testing::ContainsRegex("hop_planned plan=2 .*transport=tcp why=\"worker box-[01]: "
                                       "the hop (to|from) worker"));
  ExpectReplies(cluster, Questions(2));
}

TEST_F(NcclClusterTest, WhoWantsNcclOnlyIsLeftOutBesideACpu) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  StartCardWorker(cluster, "box-0", {"--transport", "nccl"});
  cluster.StartWorker("box-1").WaitForErr("joined");
  cluster.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving") &&
           absl::StrContains(status,
                             "left out: worker box-0: the hop to worker 2 (box-1) cannot "
                             "go by NCCL, as --transport nccl asks for: worker 2 (box-1) "
                             "has no card");
  });
  ExpectReplies(cluster, Questions(1));
}

}  // namespace
}  // namespace caravan
