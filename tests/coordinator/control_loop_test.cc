#include "coordinator/control_loop.h"

#include <atomic>
#include <future>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr absl::Duration kNoTick = absl::Hours(1);

TEST(ControlLoopTest, CallReturnsWhatTheTaskReturns) {
  ControlLoop loop(kNoTick, [] {});
  EXPECT_EQ(loop.Call<int>([] { return 42; }, -1), 42);
}

TEST(ControlLoopTest, TasksRunInOrderOnOneThread) {
  ControlLoop loop(kNoTick, [] {});
  std::vector<int> order;
  std::thread::id thread;
  ASSERT_TRUE(loop.Post([&] { thread = std::this_thread::get_id(); }));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(loop.Post([&order, i] { order.push_back(i); }));
  EXPECT_TRUE(loop.Call<bool>([&] { return thread == std::this_thread::get_id(); }, false));
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(ControlLoopTest, TicksWhenNothingIsPosted) {
  std::promise<void> third;
  int ticks = 0;  // of the loop's thread
  ControlLoop loop(absl::Milliseconds(1), [&] {
    if (++ticks == 3) third.set_value();
  });
  third.get_future().wait();
}

TEST(ControlLoopTest, TicksOnceAllThatWasPostedHasRun) {
  std::promise<void> release;
  std::promise<std::string> seen;
  std::string order;  // of the loop's thread
  ControlLoop loop(kNoTick, [&] { seen.set_value(order + "tick"); });
  ASSERT_TRUE(loop.Post([&] {
    release.get_future().wait();
    order += "first ";
  }));
  ASSERT_TRUE(loop.Post([&] { order += "second "; }));
  release.set_value();
  EXPECT_EQ(seen.get_future().get(), "first second tick");
}

TEST(ControlLoopTest, RefusesTasksOnceStopped) {
  ControlLoop loop(kNoTick, [] {});
  loop.Stop();
  loop.Stop();
  EXPECT_FALSE(loop.Post([] {}));
  EXPECT_EQ(loop.Call<int>([] { return 1; }, -1), -1);
}

TEST(ControlLoopTest, ACallThatWaitsWhenTheLoopStopsGetsIfEnding) {
  std::promise<void> begun;
  std::promise<void> release;
  auto loop = std::make_unique<ControlLoop>(kNoTick, [] {});
  ASSERT_TRUE(loop->Post([&] {
    begun.set_value();
    release.get_future().wait();
  }));
  begun.get_future().wait();
  // Queued behind the task that blocks, so it cannot run before Stop.
  std::thread stopper;
  std::atomic<bool> ran{false};
  std::thread caller([&] {
    const int result = loop->Call<int>(
        [&] {
          ran = true;
          return 1;
        },
        -1);
    EXPECT_EQ(result, ran ? 1 : -1);
  });
  stopper = std::thread([&] { loop->Stop(); });
  // Once the loop refuses tasks, nothing that is queued runs any more.
  while (loop->Post([] {})) std::this_thread::yield();
  release.set_value();
  caller.join();
  stopper.join();
  EXPECT_FALSE(ran);
}

TEST(ControlLoopTest, CallsFromManyThreadsDuringStopAllReturn) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> ran{0};
    std::atomic<int> answered{0};
    {
      ControlLoop loop(kNoTick, [] {});
      std::vector<std::thread> callers;
      for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
          while (loop.Call<int>([&] { return ++ran, 1; }, -1) == 1) ++answered;
        });
      }
      loop.Stop();
      for (std::thread& caller : callers) caller.join();
    }
    EXPECT_EQ(ran, answered);
  }
}

}  // namespace
}  // namespace caravan
