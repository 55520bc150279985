#include "base/thread_pool.h"

#include <atomic>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(ThreadPoolTest, CoversEachItemOnce) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 7, 64, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_EQ(end, std::min(count, begin + grain));
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        for (const std::atomic<int>& n : visits) EXPECT_EQ(n.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, ReturnsOnlyWhenAllIsDone) {
  // Two threads look before they sleep also on a machine of two cores, more of them there do not.
  for (const int num_threads : {2, 3}) {
    ThreadPool pool(num_threads);
    // Plain writes, read right after: a thread sanitizer sees any that ParallelFor does not await.
    std::vector<int64_t> squares(97);
    for (int round = 0; round < 500; ++round) {
      pool.ParallelFor(97, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) squares[static_cast<size_t>(i)] = i * i + round;
      });
      // The sum of the first 97 squares is 96 * 97 * 193 / 6.
      EXPECT_EQ(std::accumulate(squares.begin(), squares.end(), int64_t{0}), 299536 + 97 * round);
    }
  }
}

TEST(ThreadPoolTest, SharesTheWorkAmongItsThreads) {
  ThreadPool pool(3);
  // Each of three ranges waits until all three have begun: one thread alone would never return.
  std::atomic<int> begun{0};
  pool.ParallelFor(3, 1, [&](int64_t, int64_t) {
    begun.fetch_add(1);
    begun.notify_all();
    for (int seen = begun.load(); seen < 3; seen = begun.load()) begun.wait(seen);
  });
  EXPECT_EQ(begun.load(), 3);
}

TEST(ThreadPoolTest, EndsWithoutWork) {
  for (const int num_threads : {2, 4}) {
    for (int i = 0; i < 50; ++i) ThreadPool pool(num_threads);
  }
}

}  // namespace
}  // namespace caravan
