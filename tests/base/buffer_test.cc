#include "base/buffer.h"

#include <cstdint>
#include <utility>

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

TEST(BufferTest, MoreThanTheAddressSpaceIsRefusedWithItsSize) {
  const absl::Status refused = Buffer::Allocate(int64_t{1} << 60).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "the system refuses 1048576 TiB of memory");
}

}  // namespace
}  // namespace caravan
