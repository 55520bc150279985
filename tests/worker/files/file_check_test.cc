#include "worker/files/file_check.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/files/made_file.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FileCheckTest : public ::testing::Test {
 protected:
  FileCheckTest() : made_(MakeFile("layer-001.bin", 5000, 6, 3000, 777)) {}

  /// Of what is on the disk.
  absl::StatusOr<FileCheck> Check(const std::string& bytes) {
    dir_.Write("layer-001.bin.part", bytes);
    const absl::StatusOr<std::unique_ptr<PartialFile>> file =
        PartialFile::Open(dir_.File("layer-001.bin"), made_.packed.bytes);
    if (!file.ok()) return file.status();
    read_ = 0;
    return CheckFile(**file, made_.packed, [this](int64_t bytes_read) {
      read_ += bytes_read;
      return read_ < stop_at_;
    });
  }
  std::string Spoilt(std::initializer_list<size_t> places) const {
    std::string bytes = made_.bytes;
    for (const size_t at : places) bytes[at] = static_cast<char>(bytes[at] ^ 1);
    return bytes;
  }

  const TempDir dir_;
  const MadeFile made_;
  int64_t read_ = 0;
  int64_t stop_at_ = INT64_MAX;
};

TEST_F(FileCheckTest, WhatIsRightIsReadOnce) {
  const absl::StatusOr<FileCheck> found = Check(made_.bytes);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->is_right);
  EXPECT_THAT(found->bad_experts, IsEmpty());
  EXPECT_EQ(read_, made_.packed.bytes);
}

TEST_F(FileCheckTest, WrongExpertsAreNamedAndAWrongRestIsNone) {
  const absl::StatusOr<FileCheck> experts =
      Check(Spoilt({5000 + 2 * 3000, 5000 + 5 * 3000 + 2999}));
  ASSERT_TRUE(experts.ok()) << experts.status();
  EXPECT_FALSE(experts->is_right);
  EXPECT_THAT(experts->bad_experts, ElementsAre(2, 5));
  for (const size_t at : {size_t{0}, size_t{4999}, made_.bytes.size() - 1}) {
    const absl::StatusOr<FileCheck> rest = Check(Spoilt({at}));
    ASSERT_TRUE(rest.ok()) << rest.status();
    EXPECT_FALSE(rest->is_right) << at;
    EXPECT_THAT(rest->bad_experts, IsEmpty()) << at;
  }
}

TEST_F(FileCheckTest, ItEndsWhenItIsTold) {
  stop_at_ = 6000;
  EXPECT_EQ(Check(made_.bytes).status().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(read_, made_.packed.bytes);
}

}  // namespace
}  // namespace caravan
