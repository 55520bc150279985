#include "cluster/sender_gate.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST(SenderGateTest, LetsInWhomThePlanNames) {
  SenderGate gate;
  gate.Expect(3, {17, "worker/box-a"});
  EXPECT_TRUE(gate.Check({17, "worker/box-a"}, 3).ok());
  for (const StepSender& other :
       {StepSender{18, "worker/box-a"}, StepSender{17, "worker/box-b"}, StepSender{17, ""},
        StepSender{0, "worker/box-a"}, StepSender{}}) {
    const absl::Status status = gate.Check(other, 3);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
    EXPECT_THAT(status.message(), HasSubstr("the steps of plan 3 come from worker/box-a"));
  }
}

TEST(SenderGateTest, WithoutCertificatesTheIncarnationCounts) {
  SenderGate gate;
  gate.Expect(3, {17, ""});
  EXPECT_TRUE(gate.Check({17, ""}, 3).ok());
  EXPECT_EQ(gate.Check({18, ""}, 3).code(), absl::StatusCode::kPermissionDenied);
}

TEST(SenderGateTest, StepsOfPlansThatNobodyToldOfAreRefused) {
  SenderGate gate;
  EXPECT_EQ(gate.Check({}, 0).code(), absl::StatusCode::kAborted);
  gate.Expect(3, {17, "worker/box-a"});
  const absl::Status unknown = gate.Check({17, "worker/box-a"}, 4);
  EXPECT_EQ(unknown.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(unknown.message(), HasSubstr("steps of plan 4 are not expected here"));
  EXPECT_EQ(gate.Check({17, "worker/box-a"}, 2).code(), absl::StatusCode::kAborted);
}

TEST(SenderGateTest, EachPlanHasItsOwnSenderAndOldOnesAreForgotten) {
  SenderGate gate;
  gate.Expect(3, {17, "worker/box-a"});
  gate.Expect(4, {18, "worker/box-b"});
  EXPECT_TRUE(gate.Check({18, "worker/box-b"}, 4).ok());
  EXPECT_TRUE(gate.Check({17, "worker/box-a"}, 3).ok()) << "it may serve while 4 is made ready";
  EXPECT_EQ(gate.Check({17, "worker/box-a"}, 4).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(gate.Check({18, "worker/box-b"}, 3).code(), absl::StatusCode::kPermissionDenied);
  for (uint64_t plan = 5; plan < 100; ++plan) gate.Expect(plan, {19, "worker/box-c"});
  EXPECT_EQ(gate.Check({18, "worker/box-b"}, 4).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(gate.Check({19, "worker/box-c"}, 99).ok());
}

}  // namespace
}  // namespace caravan
