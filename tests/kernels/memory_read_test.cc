#include "kernels/cpu/memory_read.h"

#include <cstdint>
#include <random>

#include "base/buffer.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(MemoryReadTest, SumsEveryWordOnce) {
  // Not a whole number of the ranges that threads take.
  constexpr int64_t kWords = 8 * ((1 << 14) + 3);
  const Buffer buffer = *Buffer::Allocate(kWords * 8);
  auto* const words = reinterpret_cast<uint64_t*>(buffer.data());
  std::mt19937_64 random(1);
  uint64_t sum = 0;
  for (int64_t i = 0; i < kWords; ++i) sum += words[i] = random();
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_EQ(ReadMemory(pool, buffer.data(), kWords * 8), sum);
    EXPECT_EQ(ReadMemory(pool, buffer.data(), 64), words[0] + words[1] + words[2] + words[3] +
                                                       words[4] + words[5] + words[6] + words[7]);
    EXPECT_EQ(ReadMemory(pool, buffer.data(), 0), 0u);
  }
}

}  // namespace
}  // namespace caravan
