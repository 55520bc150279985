#include "worker/experts/guess_list.h"

#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

std::vector<int32_t> All(GuessList& list) {
  std::vector<int32_t> experts;
  while (const std::optional<ExpertKey> key = list.Next()) {
    EXPECT_EQ(key->layer, list.layer());
    experts.push_back(key->expert);
  }
  return experts;
}

TEST(GuessListTest, HasNothingAtFirst) {
  GuessList list(8);
  EXPECT_EQ(list.layer(), -1);
  EXPECT_EQ(list.Next(), std::nullopt);
}

TEST(GuessListTest, GivesAllInTheOrderOfTheFile) {
  GuessList list(4);
  list.SetAll(7);
  EXPECT_EQ(All(list), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(list.layer(), 7);
}

TEST(GuessListTest, GivesFirstWhatMostRowsChooseThenTheHeaviest) {
  GuessList list(8);
  // Expert 6 is chosen by three rows, 1 and 4 by two, of which 4 weighs more; 2 and 3 are alike.
  list.SetLikely(3, {1, 3, 6, 1, 4, 6, 2, 4, 6},
                 {0.25f, 0.25f, 0.125f, 0.25f, 0.5f, 0.125f, 0.25f, 0.5f, 0.125f});
  EXPECT_EQ(list.layer(), 3);
  EXPECT_EQ(All(list), (std::vector<int32_t>{6, 4, 1, 2, 3}));
}

TEST(GuessListTest, ANewListReplacesTheOld) {
  GuessList list(8);
  list.SetAll(1);
  EXPECT_EQ(list.Next()->expert, 0);
  list.SetLikely(2, {5}, {1.0f});
  EXPECT_EQ(All(list), std::vector<int32_t>{5});
  list.SetAll(4);
  list.Clear();
  EXPECT_EQ(list.layer(), -1);
  EXPECT_EQ(list.Next(), std::nullopt);
}

}  // namespace
}  // namespace caravan
