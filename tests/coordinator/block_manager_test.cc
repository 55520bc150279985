#include "coordinator/block_manager.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

using Tokens = std::vector<int32_t>;

/// A table that holds `tokens`, all of them computed.
BlockTable Cached(BlockManager& blocks, const Tokens& tokens) {
  BlockTable table;
  blocks.Adopt(tokens, table);
  EXPECT_TRUE(blocks.Grow(static_cast<int64_t>(tokens.size()), table));
  blocks.CopySent(table);
  blocks.Publish(tokens, table);
  return table;
}

TEST(BlockManagerTest, GrowsByWholeBlocksOrNotAtAll) {
  BlockManager blocks(3, 4);
  BlockTable table;
  EXPECT_TRUE(blocks.Grow(5, table));
  EXPECT_EQ(table.blocks.size(), 2u);
  EXPECT_TRUE(blocks.Grow(8, table));
  EXPECT_EQ(blocks.free_blocks(), 1);
  EXPECT_FALSE(blocks.Grow(13, table));
  EXPECT_EQ(table.blocks.size(), 2u);
  EXPECT_EQ(blocks.free_blocks(), 1);
  blocks.Free(table);
  EXPECT_EQ(blocks.free_blocks(), 3);
  EXPECT_TRUE(table.blocks.empty());
}

TEST(BlockManagerTest, SharesWholeBlocksAndCopiesTheRest) {
  BlockManager blocks(8, 4);
  const BlockTable first = Cached(blocks, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  BlockTable second;
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 5, 6, 77, 8, 9}, second), 6);
  ASSERT_EQ(second.blocks.size(), 2u);
  EXPECT_EQ(second.blocks[0], first.blocks[0]);
  ASSERT_TRUE(second.pending_copy.has_value());
  EXPECT_EQ(second.pending_copy->from, first.blocks[1]);
  EXPECT_EQ(second.pending_copy->to, second.blocks[1]);
  EXPECT_NE(second.blocks[1], first.blocks[1]);
  blocks.CheckInvariants();
}

TEST(BlockManagerTest, FindsTheLongestBeginningThereIs) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    BlockManager blocks(1000, 4);
    std::vector<Tokens> known;
    for (int round = 0; round < 60; ++round) {
      Tokens tokens;
      for (int i = draw(1, 16); i > 0; --i) tokens.push_back(draw(0, 2));
      int64_t longest = 0;
      for (const Tokens& other : known) {
        const size_t limit = std::min(tokens.size() - 1, other.size());
        size_t same = 0;
        while (same < limit && tokens[same] == other[same]) ++same;
        longest = std::max(longest, static_cast<int64_t>(same));
      }
      BlockTable table;
      EXPECT_EQ(blocks.Adopt(tokens, table), longest) << round;
      blocks.Free(table);
      table = Cached(blocks, tokens);
      if (draw(0, 1) == 0) blocks.Free(table);
      known.push_back(std::move(tokens));
      blocks.CheckInvariants();
    }
  }
}

TEST(BlockManagerTest, LeavesTheLastTokenToBeComputed) {
  BlockManager blocks(8, 4);
  const Tokens tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  Cached(blocks, tokens);
  BlockTable again;
  EXPECT_EQ(blocks.Adopt(tokens, again), 7);
  EXPECT_TRUE(again.pending_copy.has_value()) << "the last block is written to once more";
}

TEST(BlockManagerTest, EqualBlocksBehindDifferentOnesAreDifferent) {
  BlockManager blocks(8, 2);
  Cached(blocks, {1, 1, 5, 5, 9});
  BlockTable other;
  EXPECT_EQ(blocks.Adopt(Tokens{2, 2, 5, 5, 9}, other), 0);
  EXPECT_EQ(blocks.Adopt(Tokens{5, 5, 9}, other), 0);
}

TEST(BlockManagerTest, FindsBlocksAfterTheirUsersWentUntilRoomIsNeeded) {
  BlockManager blocks(4, 2);
  BlockTable table = Cached(blocks, {1, 2, 3, 4, 5, 6});
  blocks.Free(table);
  EXPECT_EQ(blocks.free_blocks(), 4);
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 5, 6, 7}, table), 6);
  blocks.Free(table);

  // The end of the sequence goes before its beginning.
  BlockTable greedy;
  EXPECT_TRUE(blocks.Grow(4, greedy));
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 5, 6, 7}, table), 4);
  blocks.Free(table);
  EXPECT_TRUE(blocks.Grow(8, greedy));
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 5, 6, 7}, table), 0);
  blocks.CheckInvariants();
}

TEST(BlockManagerTest, TakesTheLowestOfTheBlocksThatHoldNothing) {
  BlockManager blocks(6, 4);
  BlockTable first;
  BlockTable second;
  ASSERT_TRUE(blocks.Grow(8, first));
  ASSERT_TRUE(blocks.Grow(8, second));
  EXPECT_EQ(first.blocks, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(second.blocks, (std::vector<uint32_t>{2, 3}));
  blocks.Free(second);
  blocks.Free(first);
  ASSERT_TRUE(blocks.Grow(20, second));
  EXPECT_EQ(second.blocks, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
}

TEST(BlockManagerTest, TakesAFarBlockOnlyWhereNoNearOneIsFree) {
  BlockManager blocks(4, 2, 4);
  BlockTable table = Cached(blocks, {1, 2, 3, 4, 5, 6, 7, 8});
  blocks.Free(table);
  EXPECT_EQ(blocks.cached_blocks(), 2);
  // What is kept of an old prompt gives way before the blank blocks, which are far.
  BlockTable first;
  ASSERT_TRUE(blocks.Grow(8, first));
  EXPECT_THAT(first.blocks, UnorderedElementsAre(0u, 1u));
  blocks.CheckInvariants();
  BlockTable second;
  ASSERT_TRUE(blocks.Grow(8, second));
  EXPECT_THAT(second.blocks, UnorderedElementsAre(2u, 3u));
  EXPECT_EQ(blocks.free_blocks(), 0);
  // Far ones are kept for prompts that begin alike, too.
  blocks.Publish(Tokens{1, 2, 3, 4, 5, 6, 7, 8}, second);
  blocks.Free(second);
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 9}, table), 4);
  blocks.CheckInvariants();
}

TEST(BlockManagerTest, KeepsTheSourceOfACopyUntilItIsSent) {
  BlockManager blocks(2, 4);
  BlockTable table = Cached(blocks, {1, 2, 3});
  blocks.Free(table);
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 9}, table), 2);
  EXPECT_EQ(blocks.free_blocks(), 0);
  BlockTable other;
  EXPECT_FALSE(blocks.Grow(1, other));
  blocks.CopySent(table);
  EXPECT_TRUE(blocks.Grow(1, other));
}

TEST(BlockManagerTest, CopiesNothingWithoutABlockToCopyTo) {
  BlockManager blocks(1, 4);
  BlockTable table = Cached(blocks, {1, 2, 3});
  blocks.Free(table);
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 9}, table), 0);
  EXPECT_TRUE(table.blocks.empty());
  blocks.CheckInvariants();
}

TEST(BlockManagerTest, ABlockThatFillsUpStaysFindableAsOne) {
  BlockManager blocks(8, 4);
  BlockTable table;
  Tokens tokens = {1, 2};
  ASSERT_TRUE(blocks.Grow(5, table));
  blocks.Publish(tokens, table);
  tokens.insert(tokens.end(), {3, 4, 5});
  blocks.Publish(tokens, table);
  EXPECT_EQ(table.num_published, 1);
  BlockTable other;
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 5, 6}, other), 5);
  EXPECT_EQ(other.blocks[0], table.blocks[0]);
  blocks.CheckInvariants();
}

TEST(BlockManagerTest, OfTwoThatComputedTheSameOneIsFound) {
  BlockManager blocks(8, 2);
  BlockTable first;
  BlockTable second;
  const Tokens tokens = {1, 2, 3, 4, 5};
  for (BlockTable* table : {&first, &second}) ASSERT_TRUE(blocks.Grow(5, *table));
  blocks.Publish(Tokens{1}, second);
  for (BlockTable* table : {&first, &second}) blocks.Publish(tokens, *table);
  blocks.CheckInvariants();
  blocks.Free(second);
  BlockTable third;
  EXPECT_EQ(blocks.Adopt(Tokens{1, 2, 3, 4, 6}, third), 4);
  EXPECT_THAT(third.blocks, ElementsAre(first.blocks[0], first.blocks[1]));
}

/// Many sequences over few blocks; a map says what lies in each block.
TEST(BlockManagerTest, NeverHandsOutABlockWithOtherTokens) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    BlockManager blocks(24, 4);
    std::map<uint32_t, Tokens> memory;
    struct Live {
      Tokens tokens;
      BlockTable table;
    };
    std::vector<Live> live;
    int64_t reused = 0;
    for (int round = 0; round < 3000; ++round) {
      if (!live.empty() && draw(0, 2) == 0) {
        std::swap(live[static_cast<size_t>(draw(0, static_cast<int>(live.size()) - 1))],
                  live.back());
        blocks.Free(live.back().table);
        live.pop_back();
      }
      Live next;
      for (int i = draw(1, 30); i > 0; --i) next.tokens.push_back(draw(0, 9) == 0 ? 1 : 0);
      const int64_t cached = blocks.Adopt(next.tokens, next.table);
      reused += cached;
      if (!blocks.Grow(static_cast<int64_t>(next.tokens.size()), next.table)) {
        blocks.Free(next.table);
        continue;
      }
      if (next.table.pending_copy.has_value()) {
        memory[next.table.pending_copy->to] = memory[next.table.pending_copy->from];
        blocks.CopySent(next.table);
      }
      for (size_t i = 0; i < next.tokens.size(); ++i) {
        Tokens& block = memory[next.table.blocks[i / 4]];
        block.resize(4);
        if (static_cast<int64_t>(i) < cached) {
          ASSERT_EQ(block[i % 4], next.tokens[i]);
        } else {
          block[i % 4] = next.tokens[i];
        }
      }
      blocks.Publish(next.tokens, next.table);
      live.push_back(std::move(next));
      blocks.CheckInvariants();
    }
    EXPECT_GT(reused, 1000);
  }
}

}  // namespace
}  // namespace caravan
