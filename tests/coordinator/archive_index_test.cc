#include "coordinator/archive_index.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

KvBlockName Name(int i) { return NameKvRoot(std::to_string(i)); }

TEST(ArchiveIndexTest, ForgetsWhatWasUsedLeastRecently) {
  ArchiveIndex index({NameKvRoot("m"), 3, {Name(1), Name(2), Name(3)}});
  EXPECT_TRUE(index.active());
  EXPECT_EQ(index.root(), NameKvRoot("m"));
  index.Use(Name(1));
  index.Use(Name(4));
  EXPECT_FALSE(index.Contains(Name(2)));
  EXPECT_TRUE(index.Contains(Name(3))) << "to be asked for is no use";
  index.Use(Name(1));
  index.Use(Name(5));
  EXPECT_FALSE(index.Contains(Name(3)));
  EXPECT_TRUE(index.Contains(Name(1)));
  EXPECT_EQ(index.size(), 3);
}

TEST(ArchiveIndexTest, WhatAWorkerSaysIsTakenWithinBounds) {
  v1::KvArchive archive;
  EXPECT_EQ(ArchiveFromProto(archive).capacity, 0);
  archive.set_capacity(uint64_t{1} << 63);
  archive.set_names(std::string(Name(1).view()) + std::string(Name(2).view()) + "cut off");
  const ArchiveContents contents = ArchiveFromProto(archive);
  EXPECT_EQ(contents.capacity, 1 << 20);
  EXPECT_THAT(contents.names, ElementsAre(Name(1), Name(2)));

  archive.clear_names();
  for (size_t i = 0; i < kMostArchivedNames + 1; ++i) {
    absl::StrAppend(archive.mutable_names(), Name(1).view());
  }
  EXPECT_THAT(ArchiveFromProto(archive).names, SizeIs(kMostArchivedNames));
}

TEST(ArchiveIndexTest, GivesUpOnArchivesThatKeepLosingThings) {
  ArchiveIndex index({NameKvRoot("m"), 3, {Name(1)}});
  for (int i = 0; i < 2; ++i) {
    index.Clear();
    EXPECT_FALSE(index.Contains(Name(1)));
    EXPECT_TRUE(index.active());
    index.Use(Name(1));
    EXPECT_TRUE(index.Contains(Name(1)));
  }
  index.Clear();
  EXPECT_FALSE(index.active());
}

TEST(ArchiveIndexTest, HoldsALittleLessThanTheSmallestStage) {
  std::vector<KvBlockName> names;
  for (int i = 0; i < 16; ++i) names.push_back(Name(i));
  ArchiveIndex index({NameKvRoot("m"), 16, names});
  EXPECT_FALSE(index.Contains(Name(1)));
  EXPECT_TRUE(index.Contains(Name(2)));
  EXPECT_EQ(index.size(), 14);
}

TEST(ArchiveIndexTest, ForgetsWhatThereIsNoRoomForAnyMore) {
  std::vector<KvBlockName> names;
  for (int i = 0; i < 14; ++i) names.push_back(Name(i));
  ArchiveIndex index({NameKvRoot("m"), 16, names});
  EXPECT_EQ(index.size(), 14);
  index.Use(Name(3));
  index.SetCapacity(8);
  EXPECT_EQ(index.size(), 7);
  EXPECT_TRUE(index.Contains(Name(3)));
  EXPECT_FALSE(index.Contains(Name(7)));
  EXPECT_TRUE(index.Contains(Name(8)));
  index.SetCapacity(9);
  EXPECT_FALSE(index.Contains(Name(7))) << "what is gone is gone";
  index.Use(Name(7));
  EXPECT_EQ(index.size(), 8);
  index.SetCapacity(1);
  EXPECT_EQ(index.size(), 1);
  EXPECT_TRUE(index.Contains(Name(7)));
  // Where nothing is looked for that stays so.
  ArchiveIndex none({NameKvRoot("m"), 0, {}});
  none.SetCapacity(8);
  EXPECT_FALSE(none.active());
  for (int i = 0; i < 3; ++i) index.Clear();
  index.SetCapacity(8);
  EXPECT_FALSE(index.active());
}

TEST(ArchiveIndexTest, OnlyWhatAllStagesHaveIsCommon) {
  const KvBlockName root = NameKvRoot("m");
  const ArchiveContents common = CommonArchive(
      root, {{{}, 9, {Name(1), Name(2), Name(3)}}, {{}, 5, {Name(3), Name(4), Name(1)}}});
  EXPECT_EQ(common.root, root);
  EXPECT_EQ(common.capacity, 5);
  EXPECT_THAT(common.names, ElementsAre(Name(1), Name(3)));
  const ArchiveContents with_none = CommonArchive(root, {{{}, 9, {Name(1)}}, {}});
  EXPECT_EQ(with_none.capacity, 0);
  EXPECT_THAT(with_none.names, IsEmpty());
  EXPECT_EQ(CommonArchive(root, {}).capacity, 0);
}

}  // namespace
}  // namespace caravan
