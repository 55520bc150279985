#include "base/median.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(Median, IsTheMiddleWhateverTheOrder) {
  EXPECT_EQ(Median({5}), 5);
  EXPECT_EQ(Median({900, 1, 2}), 2);
  EXPECT_EQ(Median({3, -1, 4, 1, 5}), 3);
}

TEST(Median, IsHalfwayBetweenTwo) {
  EXPECT_EQ(Median({4, 1}), 2.5);
  EXPECT_EQ(Median({100, 2, 3, 0}), 2.5);
}

}  // namespace
}  // namespace caravan
