#include "base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Text(const MappedFile& file) {
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

TEST(ReadFileTest, ReturnsTheBytes) {
  const TempDir dir;
  const std::string bytes("a\0b\n", 4);
  EXPECT_EQ(*ReadFile(dir.Write("x", bytes), 4), bytes);
  EXPECT_EQ(*ReadFile(dir.Write("empty", ""), 0), "");
}

TEST(ReadFileTest, RefusesWithThePath) {
  const TempDir dir;
  const std::string path = dir.Write("x", "12345");
  const absl::Status missing = ReadFile(dir.File("none"), 10).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.message(), HasSubstr(dir.File("none")));
  EXPECT_EQ(ReadFile(path + "/y", 10).status().code(), absl::StatusCode::kNotFound);
  const absl::Status large = ReadFile(path, 4).status();
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(large.message(), AllOf(HasSubstr(path), HasSubstr("5 bytes")));
  const absl::Status directory = ReadFile(dir.path(), 10).status();
  EXPECT_EQ(directory.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory.message(), HasSubstr(dir.path()));
}

TEST(ReadFileTest, RefusesAPipeWithoutWaitingForItsWriter) {
  const TempDir dir;
  ASSERT_EQ(::mkfifo(dir.File("pipe").c_str(), 0600), 0);
  EXPECT_EQ(ReadFile(dir.File("pipe"), 10).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FileExistsTest, SeesFilesAndDirectories) {
  const TempDir dir;
  EXPECT_TRUE(FileExists(dir.Write("x", "")));
  EXPECT_TRUE(FileExists(dir.path()));
  EXPECT_FALSE(FileExists(dir.File("y")));
}

TEST(JoinPathTest, PutsOneSlashBetween) {
  EXPECT_EQ(JoinPath("a/b", "c"), "a/b/c");
  EXPECT_EQ(JoinPath("a/", "c"), "a/c");
  EXPECT_EQ(JoinPath("/", "c"), "/c");
  EXPECT_EQ(JoinPath("", "c"), "c");
}

TEST(MappedFileTest, MapsTheBytes) {
  const TempDir dir;
  const std::string path = dir.Write("x", "hello");
  const absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), path);
  EXPECT_EQ(Text(**file), "hello");
}

TEST(MappedFileTest, RefusesWhatCannotBeMapped) {
  const TempDir dir;
  EXPECT_EQ(MappedFile::Open(dir.File("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status empty = MappedFile::Open(dir.Write("empty", "")).status();
  EXPECT_EQ(empty.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(empty.message(), HasSubstr(dir.File("empty")));
}

TEST(MappedFileTest, ReadsReleasedPagesAgain) {
  const TempDir dir;
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  std::string bytes(static_cast<size_t>(3 * page + 17), '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 131 + i / 251);
  const absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(dir.Write("x", bytes));
  ASSERT_TRUE(file.ok()) << file.status();
  const int64_t size = static_cast<int64_t>(bytes.size());
  for (const auto& [offset, length] : {std::pair<int64_t, int64_t>{0, size},
                                       {1, size - 1},
                                       {page, page},
                                       {5, 10},
                                       {size, 0},
                                       {0, 0},
                                       {3 * page, 17}}) {
    EXPECT_EQ(Text(**file), bytes);
    (*file)->Release(offset, length);
    (*file)->file().Prefetch(offset, length);
    EXPECT_EQ(Text(**file), bytes) << "after releasing " << length << " bytes at " << offset;
  }
}

}  // namespace
}  // namespace caravan
