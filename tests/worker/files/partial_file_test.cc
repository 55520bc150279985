#include "worker/files/partial_file.h"

#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size());
}

class PartialFileTest : public ::testing::Test {
 protected:
  std::unique_ptr<PartialFile> Open(int64_t bytes) const {
    absl::StatusOr<std::unique_ptr<PartialFile>> file = PartialFile::Open(path_, bytes);
    EXPECT_TRUE(file.ok()) << file.status();
    return *std::move(file);
  }
  static void Put(PartialFile& file, int64_t offset, absl::string_view text) {
    EXPECT_TRUE(file.Write(offset, Bytes(text)).ok());
    EXPECT_TRUE(file.Record(offset, offset + static_cast<int64_t>(text.size())).ok());
  }
  std::string Read(const std::string& path) const { return ReadFile(path, 1 << 20).value_or(""); }

  const TempDir dir_;
  const std::string path_ = dir_.File("a.bin");
};

TEST_F(PartialFileTest, IsPutInItsPlaceOnlyWhenFinished) {
  const auto file = Open(6);
  Put(*file, 3, "def");
  EXPECT_FALSE(FileExists(path_));
  Put(*file, 0, "abc");
  EXPECT_TRUE(file->Has(0, 6));
  EXPECT_FALSE(FileExists(path_));
  ASSERT_TRUE(file->Finish().ok());
  EXPECT_EQ(Read(path_), "abcdef");
  EXPECT_FALSE(FileExists(path_ + ".part"));
  EXPECT_FALSE(FileExists(path_ + ".have"));
}

TEST_F(PartialFileTest, TheNextLifeKnowsWhatWasRecordedAndNoMore) {
  {
    const auto file = Open(10);
    Put(*file, 2, "cd");
    Put(*file, 4, "ef");
    EXPECT_TRUE(file->Write(8, Bytes("ij")).ok());  // but not recorded
    Put(*file, 0, "a");
    EXPECT_TRUE(file->Forget(3, 4).ok());
  }
  const auto file = Open(10);
  EXPECT_TRUE(file->Has(2, 3));
  EXPECT_TRUE(file->Has(4, 6));
  EXPECT_TRUE(file->Has(0, 1));
  EXPECT_FALSE(file->Has(3, 4));
  EXPECT_FALSE(file->Has(2, 6));
  EXPECT_FALSE(file->Has(8, 10));
  std::vector<std::byte> bytes(2);
  ASSERT_TRUE(file->Read(4, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(bytes[1], std::byte{'f'});
}

TEST_F(PartialFileTest, ARecordThatWasCutShortOrMakesNoSenseCountsUpToThere) {
  for (const std::string notes : {"have 0 4\nhave 4 8", "have 0 4\nhave 6 5\nhave 4 8\n",
                                  "have 0 4\nhave 4 99\n", "have 0 4\nnonsense\nhave 4 8\n"}) {
    Open(8);
    dir_.Write("a.bin.have", notes);
    const auto file = Open(8);
    EXPECT_TRUE(file->Has(0, 4)) << notes;
    EXPECT_FALSE(file->Has(4, 8)) << notes;
    // What is noted from here on counts again.
    if (notes == "have 0 4\nhave 4 8") {
      Put(*file, 4, "x");
      EXPECT_TRUE(Open(8)->Has(0, 5));
    }
  }
}

TEST_F(PartialFileTest, OneOfAnotherSizeBeginsAnew) {
  Put(*Open(6), 0, "abc");
  EXPECT_FALSE(Open(7)->Has(0, 3));
}

TEST_F(PartialFileTest, ADiskWithoutRoomIsSaidByNameAndLeavesNothing) {
  const FileSizeLimit limit(1000);
  const absl::Status status = PartialFile::Open(path_, 2000).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_FALSE(FileExists(path_ + ".part"));
}

TEST_F(PartialFileTest, RangesAreThoseOfASlowAndObviousList) {
  constexpr int64_t kBytes = 40;
  std::mt19937 random(20);
  for (int round = 0; round < 50; ++round) {
    dir_.Write("a.bin.have", "");
    auto file = Open(kBytes);
    std::vector<bool> have(kBytes);
    for (int64_t b = 0; b < kBytes; ++b) have[static_cast<size_t>(b)] = file->Has(b, b + 1);
    for (int i = 0; i < 30; ++i) {
      const auto begin = static_cast<int64_t>(random() % kBytes);
      const int64_t end = begin + 1 + static_cast<int64_t>(random()) % (kBytes - begin);
      const bool add = random() % 3 != 0;
      ASSERT_TRUE((add ? file->Record(begin, end) : file->Forget(begin, end)).ok());
      std::fill(have.begin() + begin, have.begin() + end, add);
      if (i == 15) file = Open(kBytes);
      for (int64_t b = 0; b < kBytes; ++b) {
        for (int64_t e = b + 1; e <= kBytes; e += 7) {
          const bool all =
              std::all_of(have.begin() + b, have.begin() + e, [](bool h) { return h; });
          ASSERT_EQ(file->Has(b, e), all) << b << " " << e;
        }
      }
    }
  }
}

}  // namespace
}  // namespace caravan
