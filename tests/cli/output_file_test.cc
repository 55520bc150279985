#include "cli/output_file.h"

#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

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
  EXPECT_FALSE(FileExists(path + ".new"));
  auto file = OutputFile::Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Write("ne").ok());
  ASSERT_TRUE((*file)->Write("w").ok());
  ASSERT_TRUE((*file)->Commit().ok());
  EXPECT_EQ(*ReadFile(path, 100), "new");
  EXPECT_FALSE(FileExists(path + ".new"));
}

TEST(OutputFileTest, AWrongPathIsNamedAtOnce) {
  const TempDir dir;
  for (const std::string& path : {dir.File("none/out"), dir.path()}) {
    const absl::Status status = OutputFile::Create(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

}  // namespace
}  // namespace caravan
