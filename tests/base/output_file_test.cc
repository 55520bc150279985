#include "base/output_file.h"

#include <filesystem>
#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// Nothing lies beside the file.
void ExpectAlone(const std::string& path) {
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(path).parent_path())) {
    EXPECT_EQ(entry.path(), path);
  }
}

TEST(OutputFileTest, IsThereWholeOrNotAtAll) {
  const TempDir dir;
  const std::string path = dir.Write("out", "old");
  {
    auto file = OutputFile::Create(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->Write("ne").ok());
    EXPECT_EQ(*ReadFile(path, 100), "old");
  }
  EXPECT_EQ(*ReadFile(path, 100), "old");
  ExpectAlone(path);
  auto file = OutputFile::Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Write("ne").ok());
  ASSERT_TRUE((*file)->Write("w").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(*ReadFile(path, 100), "new");
  ExpectAlone(path);
}

TEST(OutputFileTest, ALinkStaysAndItsTargetIsReplaced) {
  const TempDir dir;
  const std::string target = dir.Write("target", "old");
  const std::string link = dir.File("link");
  std::filesystem::create_symlink(target, link);
  auto file = OutputFile::Create(link);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Write("new").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(*ReadFile(target, 100), "new");
}

TEST(OutputFileTest, ADeviceIsWrittenTo) {
  auto file = OutputFile::Create("/dev/null");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Write("new").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(OutputFileTest, AWrongPathIsNamedAtOnce) {
  const TempDir dir;
  for (const std::string& path : {dir.File("none/out"), dir.path()}) {
    const absl::Status status = OutputFile::Create(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

TEST(OutputFileTest, AFullDiskIsResourceExhausted) {
  auto file = OutputFile::Create("/dev/full");
  ASSERT_TRUE(file.ok()) << file.status();
  // Some of it may wait for Commit.
  absl::Status status = (*file)->Write("bytes");
  if (status.ok()) status = (*file)->Commit();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("/dev/full: "), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace caravan
