#include "base/io/direct_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST(DirectFileTest, IsOpenedWithItsSize) {
  TempDir dir;
  const std::string path = dir.Write("file", std::string(10000, 'x'));
  const auto file = DirectFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path);
  EXPECT_EQ((*file)->bytes(), 10000);
  const int flags = ::fcntl((*file)->fd(), F_GETFL);
  EXPECT_EQ((flags & O_DIRECT) != 0, (*file)->direct());
  EXPECT_EQ(flags & O_NONBLOCK, 0);
}

TEST(DirectFileTest, FilesThatLieInTheCacheAreNotDirect) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  std::string path = "/dev/shm/caravan-XXXXXX";
  const int fd = ::mkstemp(path.data());
  ASSERT_GE(fd, 0);
  ::close(fd);
  const auto file = DirectFile::Open(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_FALSE((*file)->direct());
}

TEST(DirectFileTest, RefusalsNameThePath) {
  TempDir dir;
  const auto none = DirectFile::Open(dir.File("none"));
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr(dir.File("none")));
  const auto directory = DirectFile::Open(dir.path());
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(directory.status().message()), HasSubstr(dir.path()));
}

TEST(DirectFileTest, AScratchFileHoldsWhatIsWrittenAndHasNoName) {
  TempDir dir;
  const auto file = DirectFile::CreateScratch(dir.path(), 4 * kDirectAlignment);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->bytes(), 4 * kDirectAlignment);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  alignas(kDirectAlignment) std::byte page[kDirectAlignment];
  std::fill(std::begin(page), std::end(page), std::byte{7});
  ASSERT_TRUE((*file)->Write(2 * kDirectAlignment, page).ok());
  for (const int64_t at : {1, 2}) {
    ASSERT_EQ(::pread((*file)->fd(), page, sizeof(page), at * kDirectAlignment), kDirectAlignment);
    EXPECT_EQ(page[0], std::byte(at == 2 ? 7 : 0));
    EXPECT_EQ(page[kDirectAlignment - 1], page[0]);
  }
}

TEST(DirectFileTest, AScratchFileThatTheDiskHasNoRoomForIsRefused) {
  TempDir dir;
  const auto file = DirectFile::CreateScratch(dir.path(), int64_t{1} << 55);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(dir.path()));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(DirectFileTest, AScratchFileNeedsADirectory) {
  TempDir dir;
  const auto file = DirectFile::CreateScratch(dir.File("none"), kDirectAlignment);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(dir.File("none")));
}

}  // namespace
}  // namespace caravan
