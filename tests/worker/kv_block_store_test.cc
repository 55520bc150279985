#include "worker/kv_block_store.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/kv_testing.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kHeaderBytes = 24;
constexpr int64_t BytesOf(int layers) { return kHeaderBytes + layers * (8 + kSmallLayerBytes); }

class KvBlockStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<KvBlockStore> Open(int64_t budget = 1 << 20) const {
    return MustOpenKvStore(dir_.File("kv"), budget);
  }
  std::vector<fs::path> Files() const { return FilesIn(dir_.File("kv")); }

  /// The numbers, from 0 to 9, of the blocks that it lists.
  static std::vector<int> Listed(const KvBlockStore& store, const LayerRange& layers,
                                 size_t limit = 99) {
    std::vector<int> listed;
    for (const ListedKvPart& each : store.List(kSmallKv, layers, limit)) {
      for (int i = 0; i < 10; ++i) {
        if (each.part.name == KvName(i)) listed.push_back(i);
      }
    }
    return listed;
  }

  const TempDir dir_;
};

TEST(KvFormatTest, IsWhatItsNameSays) {
  const KvFormat format = {DType::kF16, 64, 576};
  EXPECT_EQ(format.ToString(), "F16-64x576");
  EXPECT_EQ(format.layer_bytes(), 64 * 576 * 2);
  EXPECT_EQ(ParseKvFormat("F16-64x576"), format);
  for (const char* wrong :
       {"", "F16", "F16-64", "F16-64x", "F16-64x576x", "F16-064x576", "F16-+64x576", "F16--64x576",
        "F16-64x0", "F16-0x576", "Q4_K-64x576", "Q8_0-64x33", "../F16-64x576", "F16-64x576/..",
        "F16-99999999999999999999x576", "F16-64x9999999"}) {
    EXPECT_EQ(ParseKvFormat(wrong), std::nullopt) << wrong;
  }
}

TEST(LayerRangeTest, WhatIsMissingIsWhatNoRangeHas) {
  EXPECT_EQ(Overlap({2, 4}, {4, 9}), (LayerRange{4, 2}));
  EXPECT_EQ(Overlap({2, 2}, {4, 9}).num, 0);
  EXPECT_THAT(Without({2, 4}, {}), ElementsAre(LayerRange{2, 4}));
  EXPECT_THAT(Without({2, 4}, {{0, 9}}), IsEmpty());
  EXPECT_THAT(Without({2, 4}, {{4, 1}, {0, 3}}), ElementsAre(LayerRange{3, 1}, LayerRange{5, 1}));
  EXPECT_THAT(Without({2, 4}, {{4, 2}, {0, 3}, {3, 2}}), IsEmpty());
}

TEST_F(KvBlockStoreTest, ABlockOutlivesTheStore) {
  {
    const auto store = Open();
    EXPECT_EQ(ReadKv(*store, 1, {4, 2}).code(), absl::StatusCode::kNotFound);
    EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
    EXPECT_TRUE(WriteKv(*store, 2, {4, 2}).ok());
    EXPECT_THAT(store->Use(kSmallKv, {KvName(1), {4, 2}}), IsEmpty());
  }
  const auto store = Open();
  EXPECT_THAT(Listed(*store, {4, 2}), ElementsAre(2, 1));
  EXPECT_THAT(Listed(*store, {4, 2}, 1), ElementsAre(1));
  EXPECT_TRUE(ReadKv(*store, 1, {4, 2}).ok());
  EXPECT_TRUE(ReadKv(*store, 2, {4, 2}).ok());
}

TEST_F(KvBlockStoreTest, LayersMayLieInSeveralFiles) {
  const auto store = Open();
  EXPECT_TRUE(WriteKv(*store, 1, {0, 3}).ok());
  EXPECT_TRUE(WriteKv(*store, 1, {2, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 1, {5, 2}).ok());
  EXPECT_TRUE(ReadKv(*store, 1, {1, 3}).ok());
  EXPECT_THAT(store->Use(kSmallKv, {KvName(1), {1, 6}}), ElementsAre(LayerRange{4, 1}));
  const absl::Status gap = ReadKv(*store, 1, {1, 6});
  EXPECT_EQ(gap.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(gap.message(), HasSubstr("layer 4 of KV block "));
  EXPECT_TRUE(WriteKv(*store, 1, {4, 1}).ok());
  EXPECT_TRUE(ReadKv(*store, 1, {0, 7}).ok());
  // Of another format they are not.
  EXPECT_THAT(store->Use({DType::kF32, 4, 6}, {KvName(1), {0, 7}}), SizeIs(1));
}

TEST_F(KvBlockStoreTest, AFileReplacesThoseThatAddNothing) {
  const auto store = Open();
  EXPECT_TRUE(WriteKv(*store, 1, {2, 1}).ok());
  EXPECT_TRUE(WriteKv(*store, 1, {3, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 1, {1, 3}).ok());
  EXPECT_THAT(Files(), SizeIs(2)) << "layers 1 to 3, and 3 and 4";
  EXPECT_TRUE(WriteKv(*store, 1, {1, 4}).ok());
  EXPECT_THAT(Files(), SizeIs(2)) << "all of these were there";
  EXPECT_TRUE(WriteKv(*store, 1, {1, 5}).ok());
  EXPECT_THAT(Files(), SizeIs(1));
  EXPECT_TRUE(ReadKv(*store, 1, {1, 5}).ok());
}

TEST_F(KvBlockStoreTest, TheLeastRecentlyUsedGoBeyondTheBudget) {
  {
    const auto store = Open(2 * BytesOf(2));
    EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
    EXPECT_TRUE(WriteKv(*store, 2, {0, 2}).ok());
    EXPECT_THAT(store->Use(kSmallKv, {KvName(1), {5, 1}}), IsEmpty());
    EXPECT_TRUE(ReadKv(*store, 2, {0, 2}).ok()) << "which is no use";
    EXPECT_TRUE(WriteKv(*store, 3, {7, 2}).ok());
    EXPECT_THAT(Listed(*store, {0, 9}), ElementsAre(1, 3));
    EXPECT_EQ(ReadKv(*store, 2, {0, 2}).code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(Files(), SizeIs(2));
  }
  // A smaller budget next time, too.
  const auto smaller = Open(BytesOf(2));
  EXPECT_THAT(Listed(*smaller, {0, 9}), ElementsAre(3));
  EXPECT_THAT(Files(), SizeIs(1));
  EXPECT_EQ(WriteKv(*smaller, 4, {0, 3}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Listed(*smaller, {0, 9}), ElementsAre(3));
}

TEST_F(KvBlockStoreTest, WhatAPlanDoesNotUseGoesFirst) {
  const auto store = Open(4 * BytesOf(2));
  EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 2, {0, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 3, {5, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 4, {8, 2}).ok());
  EXPECT_EQ(store->Prefer(kSmallKv, {{4, 2}}, BytesOf(2)), 0);
  EXPECT_THAT(Listed(*store, {0, 10}), ElementsAre(2, 4, 1, 3));
  EXPECT_TRUE(WriteKv(*store, 5, {4, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 6, {4, 2}).ok());
  EXPECT_THAT(Listed(*store, {0, 10}), ElementsAre(1, 3, 5, 6));
  // Of each block as a whole, however many files it has.
  EXPECT_EQ(store->Prefer(kSmallKv, {{4, 2}}, BytesOf(2) - 5), 4 * 5);
  EXPECT_TRUE(WriteKv(*store, 6, {3, 1}).ok());
  EXPECT_EQ(store->Prefer(kSmallKv, {{3, 1}, {4, 2}}, BytesOf(2)), BytesOf(1));
}

TEST_F(KvBlockStoreTest, WhatADiskBreaksIsMissing) {
  const auto store = Open();
  for (const bool cut : {false, true}) {
    EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
    ASSERT_THAT(Files(), SizeIs(1));
    if (cut) {
      fs::resize_file(Files()[0], BytesOf(2) - 1);
    } else {
      std::fstream file(Files()[0], std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(BytesOf(2) - 1);
      file.put('x');
    }
    EXPECT_TRUE(ReadKv(*store, 1, {4, 1}).ok()) << "the first layer is whole";
    EXPECT_EQ(ReadKv(*store, 1, {4, 2}).code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(Listed(*store, {4, 2}), IsEmpty());
    EXPECT_THAT(Files(), IsEmpty());
  }
  EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  fs::remove(Files()[0]);  // by somebody else
  EXPECT_EQ(ReadKv(*store, 1, {4, 2}).code(), absl::StatusCode::kNotFound);
}

TEST_F(KvBlockStoreTest, AnotherFileStandsInForABrokenOne) {
  const auto store = Open();
  EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  const fs::path narrow = Files()[0];
  EXPECT_TRUE(WriteKv(*store, 1, {5, 3}).ok());
  const fs::path wide = Files()[0] == narrow ? Files()[1] : Files()[0];
  {
    std::fstream file(wide, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(kHeaderBytes + 3 * 8);
    file.put('x');  // in layer 5
  }
  EXPECT_TRUE(ReadKv(*store, 1, {5, 1}).ok());
  EXPECT_THAT(Files(), ElementsAre(narrow));
}

TEST_F(KvBlockStoreTest, AFileOfAWrongSizeIsRemovedAndOthersAreLeftAlone) {
  fs::create_directories(dir_.File("kv/F32-3x8"));
  const std::string name = KvName(1).Hex();
  dir_.Write("kv/notes.kv", "mine");
  dir_.Write("kv/" + name + "-4-2.kv", "in no format's directory");
  dir_.Write("kv/F32-3x8/" + std::string(32, 'z') + "-4-2.kv", "mine");
  dir_.Write("kv/F32-3x8/" + name + "-4-2.kv", "too short");
  // Of an earlier process, which in a container had the same PID.
  dir_.Write(absl::StrCat("kv/F32-3x8/", name, "-4-2.kv.", ::getpid(), ".new"), "cut off");
  const auto store = Open(BytesOf(2));
  EXPECT_THAT(Files(), SizeIs(3));
  EXPECT_TRUE(WriteKv(*store, 2, {4, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 3, {4, 2}).ok());
  EXPECT_THAT(Files(), SizeIs(4));
}

TEST_F(KvBlockStoreTest, ForeignDirectoriesBesideItsOwnAreNotLookedInto) {
  const std::string name = KvName(1).Hex();
  for (const std::string other : {"lost+found", "theirs/F32-3x8"}) {
    fs::create_directories(dir_.File("kv/" + other));
    dir_.Write("kv/" + other + "/" + name + "-4-2.kv", "mine");
    dir_.Write("kv/" + other + "/" + name + "-4-2.kv.999999999.new", "mine");
  }
  dir_.Write("kv/F16-3x8", "a file of such a name");
  fs::permissions(dir_.File("kv/lost+found"), fs::perms::none);  // root's, on a mount point
  {
    const auto store = Open();
    EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  }
  EXPECT_THAT(Listed(*Open(), {4, 2}), ElementsAre(1));
  fs::permissions(dir_.File("kv/lost+found"), fs::perms::owner_all);
  EXPECT_THAT(Files(), SizeIs(6));
}

TEST_F(KvBlockStoreTest, TimesOfFilesAreThoseOfTheirUse) {
  {
    const auto store = Open();
    for (int i = 1; i < 9; ++i) {
      EXPECT_TRUE(WriteKv(*store, i, {4, 2}).ok());
      if (i > 1) {
        EXPECT_THAT(store->Use(kSmallKv, {KvName(i - 1), {4, 2}}), IsEmpty());
      }
    }
    EXPECT_THAT(Listed(*store, {4, 2}), ElementsAre(1, 2, 3, 4, 5, 6, 8, 7));
  }
  EXPECT_THAT(Listed(*Open(), {4, 2}), ElementsAre(1, 2, 3, 4, 5, 6, 8, 7));
}

/// Writing a block's file fails, as the disk is full, until the file of another is removed.
class FullDiskTest : public KvBlockStoreTest {
 protected:
  std::string PathOf(int i) const { return dir_.File("kv/F32-3x8/" + KvName(i).Hex() + "-4-2.kv"); }
  void FailsUntilItGoes(int written, int there) const {
    fs::remove(PathOf(there));
    fs::create_symlink("/dev/full", PathOf(there));
    fs::create_symlink(PathOf(there), PathOf(written));
  }
};

TEST_F(FullDiskTest, TheLeastRecentlyUsedMakeRoom) {
  const auto store = Open(100 * BytesOf(2));
  for (int i = 1; i < 6; ++i) EXPECT_TRUE(WriteKv(*store, i, {4, 2}).ok());
  EXPECT_EQ(store->room_bytes(), 100 * BytesOf(2));
  FailsUntilItGoes(6, 1);
  EXPECT_TRUE(WriteKv(*store, 6, {4, 2}).ok());
  EXPECT_TRUE(ReadKv(*store, 6, {4, 2}).ok());
  // Room for five; one of them is for what is written next, before another goes.
  EXPECT_THAT(Listed(*store, {4, 2}), ElementsAre(3, 4, 5, 6));
  EXPECT_EQ(store->room_bytes(), 4 * BytesOf(2) + BytesOf(2) / 16);
  EXPECT_TRUE(WriteKv(*store, 7, {4, 2}).ok());
  EXPECT_THAT(Listed(*store, {4, 2}), ElementsAre(4, 5, 6, 7));
  // The disk may have more by and by.
  for (int i = 8; i < 40; ++i) EXPECT_TRUE(WriteKv(*store, i, {4, 2}).ok());
  EXPECT_GE(store->room_bytes(), 6 * BytesOf(2));
  EXPECT_THAT(Files(), SizeIs(6));
}

TEST_F(FullDiskTest, OneThatStaysFullIsSaidAndALaterWriteTriesAnew) {
  const auto store = Open(100 * BytesOf(3));
  EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  EXPECT_TRUE(WriteKv(*store, 2, {4, 2}).ok());
  fs::create_symlink("/dev/full", PathOf(3));
  const absl::Status full = WriteKv(*store, 3, {4, 2});
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("No space left"));
  EXPECT_THAT(Listed(*store, {4, 2}), ElementsAre(2));
  EXPECT_EQ(store->room_bytes(), BytesOf(2));
  fs::remove(PathOf(3));
  EXPECT_TRUE(WriteKv(*store, 3, {3, 3}).ok()) << "a wider one than there was room for";
  EXPECT_TRUE(ReadKv(*store, 3, {3, 3}).ok());
}

TEST_F(KvBlockStoreTest, ADirectoryIsOneStores) {
  dir_.Write("file", "");
  const absl::Status in_a_file = KvBlockStore::Open(dir_.File("file"), 1 << 20).status();
  EXPECT_EQ(in_a_file.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(in_a_file.message(), HasSubstr(dir_.File("file")));
  {
    const auto store = Open();
    const absl::Status taken = KvBlockStore::Open(dir_.File("kv"), 1 << 20).status();
    EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(taken.message(), HasSubstr(dir_.File("kv") + ": another process"));
  }
  Open();
}

TEST_F(KvBlockStoreTest, ErrorsOfWhoIsShownAreReturned) {
  const auto store = Open();
  EXPECT_TRUE(WriteKv(*store, 1, {4, 2}).ok());
  EXPECT_EQ(store->Read(kSmallKv, {KvName(1), {4, 2}},
                        [](int, absl::Span<const std::byte>) {
                          return absl::InternalError("the card says no");
                        }),
            absl::InternalError("the card says no"));
  EXPECT_TRUE(ReadKv(*store, 1, {4, 2}).ok());
}

}  // namespace
}  // namespace caravan
