#include "base/io/direct_file.h"

#include <fcntl.h>

#include <filesystem>
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

}  // namespace
}  // namespace caravan
