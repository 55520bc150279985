#include "base/bounded_queue.h"

#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(BoundedQueueTest, IsFirstInFirstOut) {
  BoundedQueue<int> queue(3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.Push(i));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(queue.Pop(), i);
}

TEST(BoundedQueueTest, TryPushTakesNoMoreThanThereIsRoomFor) {
  BoundedQueue<int> queue(1);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_TRUE(queue.TryPush(3));
  EXPECT_EQ(queue.Pop(), 3);
  queue.Close();
  EXPECT_FALSE(queue.TryPush(4));
}

TEST(BoundedQueueTest, HandsOutWhatIsInsideAfterClose) {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  EXPECT_TRUE(queue.Push(std::make_unique<int>(7)));
  EXPECT_FALSE(queue.closed());
  queue.Close();
  queue.Close();
  EXPECT_TRUE(queue.closed());
  EXPECT_FALSE(queue.Push(std::make_unique<int>(8)));
  const std::optional<std::unique_ptr<int>> item = queue.Pop();
  ASSERT_TRUE(item.has_value());
  EXPECT_EQ(**item, 7);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, GivesUpWhenTimeRunsOut) {
  BoundedQueue<int> queue(1);
  EXPECT_EQ(queue.PopWithTimeout(absl::ZeroDuration()), std::nullopt);
  EXPECT_EQ(queue.PopWithTimeout(-absl::Seconds(1)), std::nullopt);
  const absl::Duration start = SteadyClock().Now();
  EXPECT_EQ(queue.PopWithTimeout(absl::Milliseconds(3)), std::nullopt);
  EXPECT_GE(SteadyClock().Now() - start, absl::Milliseconds(3));
  EXPECT_TRUE(queue.Push(1));
  EXPECT_EQ(queue.PopWithTimeout(absl::ZeroDuration()), 1);
}

TEST(BoundedQueueTest, CloseWakesThoseWhoWait) {
  BoundedQueue<int> full(1);
  ASSERT_TRUE(full.Push(1));
  BoundedQueue<int> empty(1);
  bool pushed = true;
  std::optional<int> popped = 1;
  std::thread pusher([&] { pushed = full.Push(2); });
  std::thread popper([&] { popped = empty.Pop(); });
  full.Close();
  empty.Close();
  pusher.join();
  popper.join();
  EXPECT_FALSE(pushed);
  EXPECT_EQ(popped, std::nullopt);
  EXPECT_EQ(full.Pop(), 1);
  EXPECT_EQ(full.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, PassesEachItemOnceInItsProducersOrder) {
  constexpr int kProducers = 3;
  constexpr int kItems = 2000;
  BoundedQueue<std::pair<int, int>> queue(4);
  std::vector<std::thread> producers;
  for (int p = 0; p < kProducers; ++p) {
    producers.emplace_back([&queue, p] {
      for (int i = 0; i < kItems; ++i) EXPECT_TRUE(queue.Push({p, i}));
    });
  }
  std::vector<int> next(kProducers, 0);
  for (int i = 0; i < kProducers * kItems; ++i) {
    const std::optional<std::pair<int, int>> item = queue.Pop();
    ASSERT_TRUE(item.has_value());
    EXPECT_EQ(item->second, next[static_cast<size_t>(item->first)]++);
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(next, std::vector<int>(kProducers, kItems));
}

}  // namespace
}  // namespace caravan
