#include "worker/kv_archive.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kLayerBytes = 100;
constexpr int64_t kBlockBytes = 24 + 2 * (8 + kLayerBytes);  // of two layers

KvBlockName Name(int i) { return NameKvRoot(std::to_string(i)); }

class KvArchiveTest : public ::testing::Test {
 protected:
  /// Of layers 4 and 5.
  KvArchive::Options Options(int64_t blocks) const {
    return {dir_.File("archive"), blocks * kBlockBytes, "f16-64x576", 4, 2, kLayerBytes};
  }
  static std::unique_ptr<KvArchive> MustOpen(const KvArchive::Options& options) {
    auto archive = KvArchive::Open(options);
    EXPECT_TRUE(archive.ok()) << archive.status();
    return *std::move(archive);
  }

  /// What layer `layer` of the model holds of block `i`.
  static std::byte Value(int i, int layer) { return static_cast<std::byte>(16 * i + layer); }

  static void Keep(KvArchive& archive, int i, int first_layer = 4) {
    EXPECT_TRUE(archive
                    .Keep(Name(i),
                          [&](int layer, absl::Span<std::byte> to) {
                            std::fill(to.begin(), to.end(), Value(i, first_layer + layer));
                            return absl::OkStatus();
                          })
                    .ok());
    archive.Flush();
  }

  static absl::Status Restore(KvArchive& archive, int i, int first_layer = 4) {
    return archive.Restore(Name(i), [&](int layer, absl::Span<const std::byte> from) {
      EXPECT_THAT(from, ::testing::Each(Value(i, first_layer + layer)));
      EXPECT_EQ(std::ssize(from), kLayerBytes);
      return absl::OkStatus();
    });
  }

  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& each : fs::recursive_directory_iterator(dir_.path())) {
      if (each.is_regular_file()) files.push_back(each.path());
    }
    return files;
  }

  const TempDir dir_;
};

TEST_F(KvArchiveTest, ABlockOutlivesTheArchive) {
  {
    const auto archive = MustOpen(Options(3));
    EXPECT_EQ(archive->capacity(), 3);
    EXPECT_EQ(Restore(*archive, 1).code(), absl::StatusCode::kNotFound);
    Keep(*archive, 1);
    Keep(*archive, 2);
    EXPECT_TRUE(Restore(*archive, 1).ok());
    EXPECT_THAT(archive->Names(9), ElementsAre(Name(2), Name(1)));
    EXPECT_THAT(archive->Names(1), ElementsAre(Name(1)));
  }
  const auto archive = MustOpen(Options(3));
  EXPECT_THAT(archive->Names(9), ElementsAre(Name(2), Name(1)));
  EXPECT_TRUE(Restore(*archive, 2).ok());
  EXPECT_TRUE(Restore(*archive, 1).ok());
}

TEST_F(KvArchiveTest, WhatWaitsIsWrittenAtTheEnd) {
  {
    const auto archive = MustOpen(Options(9));
    for (int i = 0; i < 9; ++i) {
      EXPECT_TRUE(
          archive->Keep(Name(i), [](int, absl::Span<std::byte>) { return absl::OkStatus(); }).ok());
    }
  }
  EXPECT_EQ(MustOpen(Options(9))->Names(99).size(), 9u);
}

TEST_F(KvArchiveTest, TheLeastRecentlyUsedGoBeyondTheBudget) {
  const auto archive = MustOpen(Options(2));
  Keep(*archive, 1);
  Keep(*archive, 2);
  EXPECT_TRUE(Restore(*archive, 1).ok());
  Keep(*archive, 3);
  EXPECT_THAT(archive->Names(9), ElementsAre(Name(1), Name(3)));
  EXPECT_EQ(Restore(*archive, 2).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Files().size(), 2u);
  // A smaller budget next time, too.
  const auto smaller = MustOpen(Options(1));
  EXPECT_THAT(smaller->Names(9), ElementsAre(Name(3)));
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(KvArchiveTest, BlocksOfOtherStagesServeIfTheyHaveTheLayers) {
  KvArchive::Options wider = Options(9);
  wider.first_layer = 2;
  wider.num_layers = 5;
  {
    const auto archive = MustOpen(wider);
    Keep(*archive, 1, 2);
  }
  const auto narrower = MustOpen(Options(9));
  EXPECT_THAT(narrower->Names(9), ElementsAre(Name(1)));
  EXPECT_TRUE(Restore(*narrower, 1).ok());
  Keep(*narrower, 1);
  EXPECT_EQ(Files().size(), 1u) << "it is there already";
  KvArchive::Options beyond = Options(9);
  beyond.first_layer = 6;
  EXPECT_THAT(MustOpen(beyond)->Names(9), IsEmpty());
  KvArchive::Options of_another_format = Options(9);
  of_another_format.format = "q8_0-64x576";
  EXPECT_THAT(MustOpen(of_another_format)->Names(9), IsEmpty());
}

TEST_F(KvArchiveTest, WhatADiskBreaksIsMissing) {
  for (const bool cut : {false, true}) {
    const auto archive = MustOpen(Options(3));
    Keep(*archive, 1);
    ASSERT_EQ(Files().size(), 1u);
    if (cut) {
      fs::resize_file(Files()[0], kBlockBytes - 1);
    } else {
      std::fstream file(Files()[0], std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(kBlockBytes - 1);
      file.put('x');
    }
    EXPECT_EQ(Restore(*archive, 1).code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(archive->Names(9), IsEmpty());
    EXPECT_THAT(Files(), IsEmpty());
    Keep(*archive, 1);
    EXPECT_TRUE(Restore(*archive, 1).ok());
    fs::remove(Files()[0]);  // by somebody else
    EXPECT_EQ(Restore(*archive, 1).code(), absl::StatusCode::kNotFound);
  }
}

TEST_F(KvArchiveTest, OtherFilesAreLeftAlone) {
  fs::create_directories(dir_.File("archive"));
  dir_.Write("archive/notes.kv", "mine");
  dir_.Write("archive/" + std::string(32, 'z') + "-4-2.kv", "mine");
  const auto archive = MustOpen(Options(1));
  Keep(*archive, 1);
  Keep(*archive, 2);
  EXPECT_EQ(Files().size(), 3u);
}

TEST_F(KvArchiveTest, SaysWhatIsWrong) {
  EXPECT_THAT(KvArchive::Open(Options(0)).status().message(), HasSubstr("holds no block"));
  dir_.Write("file", "");
  KvArchive::Options in_a_file = Options(1);
  in_a_file.directory = dir_.File("file");
  const absl::Status refused = KvArchive::Open(in_a_file).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr(dir_.File("file")));
  const auto archive = MustOpen(Options(1));
  EXPECT_EQ(archive->Keep(
                Name(1),
                [](int, absl::Span<std::byte>) { return absl::InternalError("the card says no"); }),
            absl::InternalError("the card says no"));
  archive->Flush();
  EXPECT_THAT(archive->Names(9), IsEmpty());
}

}  // namespace
}  // namespace caravan
