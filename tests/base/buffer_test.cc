#include "base/buffer.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "base/peak_memory.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(BufferTest, IsZeroedPageAlignedAndWritable) {
  constexpr int64_t kBytes = 3 * 4096 + 5;
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(kBytes);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(buffer->size(), kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 4096, 0u);
  for (int64_t i = 0; i < kBytes; ++i) ASSERT_EQ(buffer->data()[i], std::byte{0}) << i;
  buffer->data()[kBytes - 1] = std::byte{7};
  buffer->floats()[0] = 1.5f;
  EXPECT_EQ(buffer->data()[kBytes - 1], std::byte{7});
}

TEST(BufferTest, LargePagesChangeNoByte) {
  constexpr int64_t kBytes = (int64_t{5} << 20) + 5;
  Buffer buffer = *Buffer::Allocate(kBytes);
  buffer.PreferLargePages();
  EXPECT_EQ(buffer.data()[kBytes - 1], std::byte{0});
  buffer.data()[kBytes - 1] = std::byte{7};
  buffer.PreferLargePages();
  EXPECT_EQ(buffer.data()[kBytes - 1], std::byte{7});
  Buffer().PreferLargePages();
}

TEST(BufferTest, NothingIsABufferToo) {
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->size(), 0);
  EXPECT_EQ(buffer->data(), nullptr);
}

TEST(BufferTest, MovesWithoutCopying) {
  Buffer first = *Buffer::Allocate(8);
  std::byte* const data = first.data();
  Buffer second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.size(), 8);
  Buffer third = *Buffer::Allocate(16);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.size(), 8);
}

constexpr int64_t kMiB = int64_t{1} << 20;

/// Fills each page with its number, counted from `first`.
void FillPages(Buffer& buffer, int64_t first = 0) {
  for (int64_t at = first * 4096; at + 4096 <= buffer.size(); at += 4096) {
    const int64_t page = at / 4096;
    std::memcpy(buffer.data() + at, &page, sizeof(page));
  }
}
/// Whether the first `bytes` are as FillPages left them.
bool AreFilled(const Buffer& buffer, int64_t bytes) {
  for (int64_t at = 0; at + 4096 <= bytes; at += 4096) {
    int64_t page = 0;
    std::memcpy(&page, buffer.data() + at, sizeof(page));
    if (page != at / 4096) return false;
  }
  return true;
}

TEST(BufferTest, AnotherSizeLeavesTheBytesThatStay) {
  for (const bool large_pages : {false, true}) {
    Buffer buffer = *Buffer::Allocate(6 * kMiB);
    if (large_pages) buffer.PreferLargePages();
    FillPages(buffer);
    // Each is grown into something that lies there, and so moves.
    std::vector<Buffer> others;
    for (const int64_t bytes : {5 * kMiB + 4096, 9 * kMiB + 7, 2 * kMiB, 40 * kMiB, 40 * kMiB}) {
      const int64_t before = buffer.size();
      others.push_back(*Buffer::Allocate(kMiB));
      ASSERT_TRUE(buffer.Resize(bytes).ok());
      EXPECT_EQ(buffer.size(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u);
      EXPECT_TRUE(AreFilled(buffer, std::min(before, bytes))) << bytes;
      FillPages(buffer, before / 4096);
      others.push_back(*Buffer::Allocate(3 * kMiB));
    }
  }
}

/// Ends a process of its own, as a peak is that of all that a process ever did: with 0, or with the
/// line of what is wrong.
void CheckThatResizeTakesNoMemoryForBoth() {
  const auto check = [](bool holds, int line) {
    if (!holds) std::_Exit(line % 256);
  };
  constexpr int64_t kBytes = 64 * kMiB;
  Buffer buffer = *Buffer::Allocate(kBytes);
  FillPages(buffer);
  const int64_t before = ProcessMemory(::getpid(), "VmRSS");
  check(before > kBytes, __LINE__);
  check(buffer.Resize(3 * kBytes / 2).ok(), __LINE__);
  FillPages(buffer);
  check(PeakMemory(::getpid()) > before, __LINE__);
  check(PeakMemory(::getpid()) < before + kBytes, __LINE__);
  check(buffer.Resize(kBytes / 4).ok(), __LINE__);
  check(ProcessMemory(::getpid(), "VmRSS") < before - kBytes / 2, __LINE__);
  check(AreFilled(buffer, buffer.size()), __LINE__);
  std::_Exit(0);
}

TEST(BufferTest, AnotherSizeTakesNoMemoryForBoth) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "its shadow of the buffer is the process's memory too";
#endif
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // begins anew, with this test alone
  EXPECT_EXIT(CheckThatResizeTakesNoMemoryForBoth(), ::testing::ExitedWithCode(0), "");
}

TEST(BufferTest, LockedMemoryChangesItsSizeToo) {
  Buffer buffer = *Buffer::Allocate(kMiB / 4);
  if (!buffer.Lock()) GTEST_SKIP() << "no memory may be locked here";
  FillPages(buffer);
  // More than many a process may lock.
  ASSERT_TRUE(buffer.Resize(256 * kMiB).ok());
  EXPECT_TRUE(AreFilled(buffer, kMiB / 4));
  ASSERT_TRUE(buffer.Resize(4096).ok());
  EXPECT_TRUE(AreFilled(buffer, 4096));
}

TEST(BufferTest, NothingChangesItsSizeToo) {
  Buffer buffer;
  ASSERT_TRUE(buffer.Resize(4096).ok());
  buffer.data()[4095] = std::byte{7};
  EXPECT_EQ(buffer.Resize(int64_t{1} << 60).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(buffer.size(), 4096);
  EXPECT_EQ(buffer.data()[4095], std::byte{7});
  ASSERT_TRUE(buffer.Resize(0).ok());
  EXPECT_EQ(buffer.data(), nullptr);
}

TEST(BufferTest, MoreThanTheAddressSpaceIsRefusedWithItsSize) {
  const absl::Status refused = Buffer::Allocate(int64_t{1} << 60).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "the system refuses 1048576 TiB of memory");
}

}  // namespace
}  // namespace caravan
