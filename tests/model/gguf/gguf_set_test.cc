#include "model/gguf/gguf_set.h"

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr int kCount = 3;

/// Three files; the first holds no tensors, the others "t1", "t2".
class GgufSetTest : public ::testing::Test {
 protected:
  GgufSetTest() {
    for (int no = 0; no < kCount; ++no) WriteFile(no, Part(no));
  }

  static std::string Name(int no) { return absl::StrFormat("m-%05d-of-%05d.gguf", no + 1, kCount); }

  static GgufWriter Part(int no, int said_no, int said_count) {
    GgufWriter writer;
    writer.Set("split.no", static_cast<uint16_t>(said_no));
    writer.Set("split.count", static_cast<uint16_t>(said_count));
    if (no == 0) {
      writer.Set("split.tensors.count", int32_t{kCount - 1});
      writer.SetString("general.name", "of the first");
    } else {
      writer.AddTensor(absl::StrCat("t", no), {1}, kF32, absl::StrCat("abc", no));
    }
    return writer;
  }
  static GgufWriter Part(int no) { return Part(no, no, kCount); }

  void WriteFile(int no, const GgufWriter& writer) { dir_.Write(Name(no), writer.Bytes()); }

  void ExpectRefused(int opened_by, absl::StatusCode code, const std::vector<std::string>& words) {
    const absl::Status status = GgufSet::Open(dir_.File(Name(opened_by))).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& word : words) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    }
  }

  TempDir dir_;
};

TEST_F(GgufSetTest, ASetsFilesAreKnownByTheNameOfAnyOfThem) {
  for (int no = 0; no < kCount; ++no) {
    EXPECT_THAT(GgufSetPaths("a/" + Name(no)),
                ElementsAre("a/" + Name(0), "a/" + Name(1), "a/" + Name(2)));
  }
  for (const char* path :
       {"m.gguf", "", "-00001-of-00003", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf",
        "m-00001-of-00000.gguf", "m-0x001-of-00003.gguf", "m-00001_of_00003.gguf", "m-1-of-3.gguf",
        "m-00001-of-99999.gguf", "m-00001-or-00003.gguf"}) {
    EXPECT_THAT(GgufSetPaths(path), ElementsAre(path));
  }
}

TEST_F(GgufSetTest, FindsTheOthersFromAnyOfThem) {
  for (int no = 0; no < kCount; ++no) {
    const auto set = GgufSet::Open(dir_.File(Name(no)));
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_THAT((*set)->TensorNames(), ElementsAre("t1", "t2"));
    EXPECT_EQ(*(*set)->metadata().String("general.name"), "of the first");
    EXPECT_EQ((*set)->path(), dir_.File(Name(0)));
    EXPECT_EQ((*set)->FileOf("t2")->path(), dir_.File(Name(2)));
    EXPECT_EQ((*set)->FileOf("t3"), nullptr);
    EXPECT_EQ((*set)->Find("t3"), nullptr);
    std::string bytes(4, ' ');
    ASSERT_TRUE(
        (*set)->Read("t2", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 4)).ok());
    EXPECT_EQ(bytes, "abc2");
  }
}

TEST_F(GgufSetTest, ReadsASingleFileOfAnyName) {
  GgufWriter writer;
  writer.AddTensor("t", {1}, kF32, "abcd");
  EXPECT_TRUE(GgufSet::Open(dir_.Write("model", writer.Bytes())).ok());
  writer.Set("split.count", uint16_t{1});
  writer.Set("split.no", uint16_t{0});
  EXPECT_TRUE(GgufSet::Open(dir_.Write("model.gguf", writer.Bytes())).ok());
}

TEST_F(GgufSetTest, NamesAMissingFile) {
  std::filesystem::remove(dir_.File(Name(1)));
  ExpectRefused(0, absl::StatusCode::kNotFound, {dir_.File(Name(1)), "file 2 of the 3"});
  ExpectRefused(2, absl::StatusCode::kNotFound, {dir_.File(Name(1)), "file 2 of the 3"});
}

TEST_F(GgufSetTest, NamesAMalformedFile) {
  dir_.Write(Name(2), "GGUFx");
  ExpectRefused(0, absl::StatusCode::kInvalidArgument, {dir_.File(Name(2)), "truncated"});
}

TEST_F(GgufSetTest, RefusesFilesThatDoNotBelongTogether) {
  WriteFile(1, Part(1, 2, kCount));
  ExpectRefused(0, absl::StatusCode::kInvalidArgument, {dir_.File(Name(1)), "split.no"});
  ExpectRefused(1, absl::StatusCode::kInvalidArgument,
                {dir_.File(Name(1)), "split.no", "must end in \"-00003-of-00003.gguf\""});
  WriteFile(1, Part(1, 1, 4));
  ExpectRefused(0, absl::StatusCode::kInvalidArgument, {dir_.File(Name(1)), "split.count"});
  WriteFile(1, Part(2, 1, kCount));  // t2 once more
  ExpectRefused(0, absl::StatusCode::kInvalidArgument,
                {dir_.File(Name(2)), "tensor t2", "too", dir_.File(Name(1))});
  GgufWriter without;
  without.AddTensor("t1", {1}, kF32, "abcd");
  WriteFile(1, without);
  ExpectRefused(0, absl::StatusCode::kInvalidArgument,
                {dir_.File(Name(1)), "split.count", "is missing"});
  GgufWriter empty;
  empty.Set("split.no", uint16_t{1});
  empty.Set("split.count", uint16_t{kCount});
  WriteFile(1, empty);
  ExpectRefused(0, absl::StatusCode::kInvalidArgument,
                {dir_.File(Name(0)), "split.tensors.count", "is 2, but there are 1"});
}

TEST_F(GgufSetTest, RefusesAPlaceBeyondTheCount) {
  WriteFile(0, Part(0, 3, kCount));
  ExpectRefused(0, absl::StatusCode::kInvalidArgument, {"split.no", "from 0 to 2"});
}

}  // namespace
}  // namespace caravan
