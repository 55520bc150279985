#include "worker/step_loop.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/golden.h"
#include "tests/worker/fake_hop.h"

namespace caravan {
namespace {

constexpr uint64_t kPlan = 3;

/// The loop of a small stage, and what it tells.
class StepLoopTest : public ::testing::Test {
 protected:
  std::unique_ptr<StepLoop> MakeLoop() {
    const std::unique_ptr<Checkpoint> checkpoint =
        MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
    Stage::Options options;
    options.name = "box-a";
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = 8;
    auto stage = Stage::Create(checkpoint->config(), {0, 1, true, false}, *checkpoint,
                               *MakeCpuBackend({}), options, [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return std::make_unique<StepLoop>(kPlan, *std::move(stage), hop_.Connect(),
                                      [this](const absl::Status& why) { broken_.Push(why); });
  }

  /// A step that only passes through.
  static v1::Step MakeStep(uint64_t id, uint64_t plan = kPlan) {
    v1::Step step;
    step.set_plan_version(plan);
    step.set_step_id(id);
    return step;
  }

  FakeHop hop_;
  BoundedQueue<absl::Status> broken_{10};
};

TEST_F(StepLoopTest, RunsStepsAndSendsThemOn) {
  const std::unique_ptr<StepLoop> loop = MakeLoop();
  v1::Step step = MakeStep(1);
  step.add_slices();  // without tokens, which shows that the stage has seen it
  ASSERT_TRUE(loop->Receive(std::move(step)).ok());
  ASSERT_TRUE(loop->Receive(MakeStep(2)).ok());
  const v1::Step first = hop_.Take();
  EXPECT_EQ(first.step_id(), 1u);
  EXPECT_TRUE(first.has_error());
  EXPECT_EQ(hop_.Take().step_id(), 2u);
}

TEST_F(StepLoopTest, RefusesStepsOfAnotherPlanAndThoseThatGoBack) {
  const std::unique_ptr<StepLoop> loop = MakeLoop();
  EXPECT_EQ(loop->Receive(MakeStep(1, kPlan + 1)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(loop->Receive(MakeStep(1, kPlan - 1)).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(loop->Receive(MakeStep(5)).ok());
  EXPECT_EQ(loop->Receive(MakeStep(5)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(loop->Receive(MakeStep(4)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(loop->Receive(MakeStep(6)).ok());
  EXPECT_EQ(hop_.Take().step_id(), 5u);
  EXPECT_EQ(hop_.Take().step_id(), 6u);
}

TEST_F(StepLoopTest, StepsThatSeveralThreadsBringRunInOrder) {
  const std::unique_ptr<StepLoop> loop = MakeLoop();
  std::atomic<uint64_t> last_id{0};
  std::atomic<int> accepted{0};
  std::vector<std::thread> senders;
  for (int i = 0; i < 4; ++i) {
    senders.emplace_back([&] {
      for (int j = 0; j < 200; ++j) {
        if (loop->Receive(MakeStep(++last_id)).ok()) ++accepted;
      }
    });
  }
  for (std::thread& sender : senders) sender.join();
  ASSERT_GE(accepted, 1);
  uint64_t last = 0;
  for (int i = 0; i < accepted; ++i) {
    const uint64_t id = hop_.Take().step_id();
    EXPECT_GT(id, last);
    last = id;
  }
}

TEST_F(StepLoopTest, StopReleasesAReceiverThatWaitsForRoom) {
  const std::unique_ptr<StepLoop> loop = MakeLoop();
  hop_.Hold();
  ASSERT_TRUE(loop->Receive(MakeStep(1)).ok());
  hop_.WaitForASendThatWaits();
  absl::Status refused;
  std::atomic<uint64_t> received{1};
  std::thread receiver([&] {
    while (refused.ok()) refused = loop->Receive(MakeStep(++received));
  });
  // One is being sent, the queue is full, and this one waits.
  while (received < StepLoop::kQueuedSteps + 2) std::this_thread::yield();
  loop->Stop();
  receiver.join();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(loop->Receive(MakeStep(1000000)).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(broken_.PopWithTimeout(absl::ZeroDuration()).has_value());
  loop->Stop();
}

TEST_F(StepLoopTest, ALostHopIsToldOnceAndEndsTheIntake) {
  const std::unique_ptr<StepLoop> loop = MakeLoop();
  const absl::Status why = absl::UnavailableError("worker b is gone");
  hop_.Break(why);
  ASSERT_TRUE(loop->Receive(MakeStep(1)).ok());
  EXPECT_EQ(broken_.Pop(), why);
  EXPECT_EQ(loop->Receive(MakeStep(2)).code(), absl::StatusCode::kUnavailable);
  loop->Stop();
  EXPECT_FALSE(broken_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

}  // namespace
}  // namespace caravan
