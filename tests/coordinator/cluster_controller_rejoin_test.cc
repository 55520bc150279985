// What a ClusterController does about a worker that comes and goes.

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

v1::Registration At(const std::string& address) {
  v1::Registration registration;
  registration.set_address(address);
  return registration;
}

/// A worker that serves, and one that comes and goes beside it.
class ClusterControllerRejoinTest : public ::testing::Test {
 protected:
  FakeWorker* ComeBack() {
    return cluster_.Join("box-b", kWhole, /*offloads=*/false, At("10.0.0.99:7000"));
  }
  /// It joins, a plan with both takes the other's place, and it is lost.
  void ComeAndGo() {
    FakeWorker* const b = ComeBack();
    const uint64_t plan = OnlyPrepare(a_->TakeOrders()).stage().plan_version();
    for (FakeWorker* const worker : {a_, b}) cluster_.Prepared(worker, plan);
    cluster_.WaitUntilQuiet();
    for (FakeWorker* const worker : {a_, b}) cluster_.Ready(worker, plan);
    EXPECT_TRUE(cluster_.Status().serving());
    cluster_.Gone(b);
    ServeAlone();
  }
  void ServeAlone() {
    cluster_.Ready(a_, cluster_.Status().plan_version());
    EXPECT_TRUE(cluster_.Status().serving());
    a_->TakeOrders();
  }
  /// So long, while box-a is heard of.
  void Pass(absl::Duration time) {
    for (; time > absl::ZeroDuration(); time -= absl::Seconds(1)) {
      cluster_.Heartbeat(a_);
      if (b_ != nullptr) cluster_.Heartbeat(b_);
      cluster_.Advance(absl::Seconds(1));
    }
  }

  FakeCluster cluster_;
  FakeWorker* const a_ = cluster_.Join("box-a", kWhole, /*offloads=*/false, At("10.0.0.98:7000"));
  FakeWorker* b_ = nullptr;
};

TEST_F(ClusterControllerRejoinTest, FromTheFourthTimeOnItStaysSpareForAWhile) {
  ServeAlone();
  for (int i = 0; i < 3; ++i) ComeAndGo();
  const uint64_t plan = cluster_.Status().plan_version();
  b_ = ComeBack();
  EXPECT_TRUE(cluster_.Status().serving());
  EXPECT_EQ(cluster_.Status().plan_version(), plan) << "nobody is disturbed";
  EXPECT_EQ(cluster_.Status().pipeline_state(),
            "serving; held back: worker 5 (box-b), lost 3 times in a row, for 30s");
  EXPECT_EQ(cluster_.Status().workers(1).state(), v1::WORKER_STATE_SPARE);
  EXPECT_EQ(cluster_.Status().workers(1).held_back_s(), 30);
  Pass(absl::Seconds(29));
  EXPECT_EQ(cluster_.Status().plan_version(), plan);
  EXPECT_TRUE(a_->TakeOrders().empty());
  Pass(absl::Seconds(1));
  EXPECT_GT(OnlyPrepare(a_->TakeOrders()).stage().plan_version(), plan);
  EXPECT_THAT(cluster_.Status().pipeline_state(), Not(HasSubstr("held back")));
  EXPECT_EQ(cluster_.Status().workers(1).held_back_s(), 0);
}

TEST_F(ClusterControllerRejoinTest, ItsPlanDoesNotWaitForASplitThatFailed) {
  ServeAlone();
  for (int i = 0; i < 3; ++i) ComeAndGo();
  b_ = ComeBack();
  FakeWorker* const c = cluster_.Join("box-c");
  const uint64_t plan = OnlyPrepare(a_->TakeOrders()).stage().plan_version();
  for (FakeWorker* const worker : {a_, c}) cluster_.Prepared(worker, plan);
  cluster_.WaitUntilQuiet();
  cluster_.Fail(c, plan, "box-c: the next hop cannot be reached");  // held for a minute
  const auto pass = [&](int seconds) {
    for (int second = 0; second < seconds; ++second) {
      cluster_.Heartbeat(c);
      Pass(absl::Seconds(1));
    }
  };
  pass(5);
  ServeAlone();
  pass(24);
  EXPECT_THAT(a_->TakeOrders(), IsEmpty());
  pass(1);
  EXPECT_GT(OnlyPrepare(a_->TakeOrders()).stage().plan_version(), plan);
}

TEST_F(ClusterControllerRejoinTest, ItIsLetInWhereTheOthersCannotDoWithoutIt) {
  ServeAlone();
  for (int i = 0; i < 3; ++i) ComeAndGo();
  FakeWorker* const b = ComeBack();
  EXPECT_THAT(cluster_.Status().pipeline_state(), HasSubstr("held back"));
  b->TakeOrders();
  cluster_.Gone(a_);
  EXPECT_EQ(cluster_.Status().pipeline_state(), "loading");
  cluster_.Ready(b, OnlyLoad(b->TakeOrders()).plan_version());
  EXPECT_EQ(cluster_.Status().pipeline_state(), "serving");
}

TEST_F(ClusterControllerRejoinTest, WhoIsHeldBackCountsWhenAnotherIsDrained) {
  ServeAlone();
  EXPECT_EQ(cluster_.controller().Drain("box-a", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  for (int i = 0; i < 3; ++i) ComeAndGo();
  b_ = ComeBack();
  EXPECT_THAT(cluster_.Status().pipeline_state(), HasSubstr("held back"));
  EXPECT_EQ(cluster_.controller().Drain("box-b", false).status(), absl::OkStatus())
      << "the others do without it";
  EXPECT_TRUE(cluster_.controller().Drain("box-b", true).ok());
  EXPECT_THAT(cluster_.Status().pipeline_state(), HasSubstr("held back")) << "as before";

  b_->TakeOrders();
  EXPECT_EQ(cluster_.controller().Drain("box-a", false).status(), absl::OkStatus());
  EXPECT_THAT(cluster_.Status().pipeline_state(), Not(HasSubstr("held back")));
  cluster_.Prepared(b_, OnlyPrepare(b_->TakeOrders()).stage().plan_version());
  cluster_.WaitUntilQuiet();
  cluster_.Ready(b_, OnlyLoad(b_->TakeOrders()).plan_version());
  EXPECT_EQ(cluster_.Status().pipeline_state(), "serving; drained: worker 1 (box-a)");
}

TEST_F(ClusterControllerRejoinTest, OfThoseHeldBackOnlyWhomItTakesAreLetIn) {
  ServeAlone();
  for (int i = 0; i < 3; ++i) ComeAndGo();
  FakeWorker* const b = ComeBack();
  // box-c has been lost as often, with a stage that it never served.
  const v1::Registration address = At("10.0.0.97:7000");
  for (int i = 0; i < 3; ++i) {
    cluster_.Gone(cluster_.Join("box-c", kWhole, /*offloads=*/false, address));
    a_->TakeOrders();
  }
  FakeWorker* const c = cluster_.Join("box-c", kWhole, /*offloads=*/false, address);
  EXPECT_GT(cluster_.Status().workers(1).held_back_s(), 0);
  EXPECT_GT(cluster_.Status().workers(2).held_back_s(), 0);
  b->TakeOrders();
  c->TakeOrders();
  cluster_.Gone(a_);
  EXPECT_GT(OnlyLoad(b->TakeOrders()).plan_version(), 0u);
  EXPECT_THAT(c->TakeOrders(), IsEmpty());
  EXPECT_EQ(cluster_.Status().workers(0).held_back_s(), 0);
  EXPECT_GT(cluster_.Status().workers(1).held_back_s(), 0) << "one is enough";
}

TEST_F(ClusterControllerRejoinTest, AProcessThatTakesAnAddressOverCountsAsALossOfTheOneBefore) {
  ServeAlone();
  for (int i = 0; i < 4; ++i) {
    EXPECT_THAT(cluster_.Status().pipeline_state(), Not(HasSubstr("held back")));
    ComeBack();  // The life before is not known to be over.
  }
  EXPECT_THAT(cluster_.Status().pipeline_state(),
              HasSubstr("held back: worker 5 (box-b), lost 3 times in a row, for 30s"));
}

}  // namespace
}  // namespace caravan
