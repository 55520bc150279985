#include "cluster/in_process_channel.h"

#include <pthread.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

v1::Step MakeStep(uint64_t id) {
  v1::Step step;
  step.set_step_id(id);
  return step;
}

TEST(InProcessChannelTest, DeliversInOrder) {
  BoundedQueue<uint64_t> received(100);
  auto channel = MakeInProcessChannel(
      [&](v1::Step step) {
        received.Push(step.step_id());
        return absl::OkStatus();
      },
      2);
  for (uint64_t id = 1; id <= 100; ++id) ASSERT_TRUE(channel->Send(MakeStep(id)).ok());
  for (uint64_t id = 1; id <= 100; ++id) EXPECT_EQ(received.Pop(), id);
}

TEST(InProcessChannelTest, DeliversOnAThreadWithAName) {
  BoundedQueue<std::string> names(1);
  auto channel = MakeInProcessChannel(
      [&](v1::Step) {
        char name[16] = "";
        pthread_getname_np(pthread_self(), name, sizeof(name));
        names.Push(name);
        return absl::OkStatus();
      },
      1);
  ASSERT_TRUE(channel->Send(MakeStep(1)).ok());
  EXPECT_EQ(names.Pop(), "hop-local");
}

TEST(InProcessChannelTest, ReturnsTheReceiversErrorFromThenOn) {
  auto channel = MakeInProcessChannel(
      [](v1::Step step) {
        return step.step_id() == 3 ? absl::AbortedError("the plan is over") : absl::OkStatus();
      },
      1);
  absl::Status sent;
  // Step 3 fails when it is delivered; the bound lets at most two more pass before that shows.
  for (uint64_t id = 1; id <= 6 && sent.ok(); ++id) sent = channel->Send(MakeStep(id));
  EXPECT_EQ(sent, absl::AbortedError("the plan is over"));
  EXPECT_EQ(channel->Send(MakeStep(9)), absl::AbortedError("the plan is over"));
  channel->Close();
  EXPECT_EQ(channel->Send(MakeStep(9)), absl::AbortedError("the plan is over"));
}

TEST(InProcessChannelTest, RefusesToSendOnceClosed) {
  auto channel = MakeInProcessChannel([](v1::Step) { return absl::OkStatus(); }, 1);
  channel->Close();
  channel->Close();
  EXPECT_EQ(channel->Send(MakeStep(1)).code(), absl::StatusCode::kCancelled);
}

TEST(InProcessChannelTest, CloseReleasesASendThatWaits) {
  BoundedQueue<int> entered(1);
  BoundedQueue<int> release(1);
  auto channel = MakeInProcessChannel(
      [&](v1::Step) {
        entered.Push(0);
        release.Pop();
        return absl::OkStatus();
      },
      1);
  ASSERT_TRUE(channel->Send(MakeStep(1)).ok());
  entered.Pop();
  ASSERT_TRUE(channel->Send(MakeStep(2)).ok());  // fills the queue
  std::thread closer;
  {
    BoundedQueue<absl::Status> result(1);
    std::thread sender([&] { result.Push(channel->Send(MakeStep(3))); });
    closer = std::thread([&] { channel->Close(); });
    // While the receiver still holds step 1.
    EXPECT_EQ(result.Pop()->code(), absl::StatusCode::kCancelled);
    sender.join();
  }
  release.Close();
  closer.join();
  EXPECT_FALSE(entered.PopWithTimeout(absl::ZeroDuration()).has_value());  // step 2 was dropped
}

}  // namespace
}  // namespace caravan
