#include "base/directory_lock.h"

#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(DirectoryLockTest, IsOnesUntilItGoes) {
  const TempDir dir;
  const std::string directory = dir.File("made/on/the/way");
  {
    absl::StatusOr<DirectoryLock> lock = DirectoryLock::Take(directory, "lock");
    ASSERT_TRUE(lock.ok()) << lock.status();
    const DirectoryLock moved = *std::move(lock);
    const absl::Status taken = DirectoryLock::Take(directory, "lock").status();
    EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(taken.message()), StartsWith(directory + ": another process"));
    EXPECT_TRUE(DirectoryLock::Take(directory, "other").ok()) << "who keeps something else there";
  }
  EXPECT_TRUE(DirectoryLock::Take(directory, "lock").ok());
}

TEST(DirectoryLockTest, SaysWhyItCannotLock) {
  const TempDir dir;
  dir.Write("file", "");
  const absl::Status in_a_file = DirectoryLock::Take(dir.File("file"), "lock").status();
  EXPECT_EQ(in_a_file.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(in_a_file.message()), StartsWith(dir.File("file")));
  std::filesystem::create_directory(dir.File("lock"));
  const absl::Status no_file = DirectoryLock::Take(dir.path(), "lock").status();
  EXPECT_EQ(no_file.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(no_file.message()), HasSubstr(dir.File("lock") + ": Is a directory"));
}

}  // namespace
}  // namespace caravan
