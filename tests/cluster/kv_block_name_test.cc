#include "cluster/kv_block_name.h"

#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(KvBlockNameTest, NamesTellModelsBeginningsAndTokensApart) {
  const KvBlockName root = NameKvRoot("a model");
  const std::vector<int32_t> tokens = {1, 2, 3};
  std::set<std::string> names = {root.Hex(), NameKvRoot("another").Hex()};
  for (const KvBlockName& before : {root, NameKvRoot("another"), NameKvBlock(root, tokens)}) {
    for (const std::vector<int32_t>& own : {tokens, {1, 2}, {1, 2, 4}, {3, 2, 1}, {}}) {
      names.insert(NameKvBlock(before, own).Hex());
    }
  }
  EXPECT_EQ(names.size(), 2u + 3 * 5);
  EXPECT_EQ(NameKvBlock(root, tokens), NameKvBlock(root, tokens));
}

TEST(KvBlockNameTest, AreWhatFilesOfEarlierVersionsAreCalled) {
  // printf '' | sha256sum, and over that name and the little-endian ids 1, 2.
  const KvBlockName root = NameKvRoot("");
  EXPECT_EQ(root.Hex(), "e3b0c44298fc1c149afbf4c8996fb924");
  EXPECT_EQ(NameKvBlock(root, {1, 2}).Hex(), "7eaed0f864f5a2d16d4761492ab74e76");
}

TEST(KvBlockNameTest, ComeBackFromWireAndFileNames) {
  const KvBlockName name = NameKvRoot("x");
  EXPECT_EQ(KvBlockNameFromWire(name.view()), name);
  EXPECT_EQ(KvBlockNameFromHex(name.Hex()), name);
  EXPECT_FALSE(KvBlockNameFromWire("short").has_value());
  EXPECT_FALSE(KvBlockNameFromWire(std::string(17, 'x')).has_value());
  EXPECT_FALSE(KvBlockNameFromHex(std::string(32, 'g')).has_value());
  EXPECT_FALSE(KvBlockNameFromHex(std::string(32, 'A')).has_value());
  EXPECT_FALSE(KvBlockNameFromHex(std::string(34, 'a')).has_value());
}

}  // namespace
}  // namespace caravan
