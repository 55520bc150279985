#include "worker/experts/expert_costs.h"

#include <algorithm>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kAnyNumber = std::numeric_limits<int64_t>::max();
constexpr ExpertPlace kCpu = ExpertPlace::kCpu;
constexpr ExpertPlace kCopy = ExpertPlace::kCopy;

// A CPU that takes a second an expert and half of one more a row, a card that takes a tenth of
// that.
ExpertCosts Costs(double copy_seconds) {
  return {{{1, 1.5, 0.15}, {4, 3, 0.3}, {16, 9, 0.9}}, copy_seconds};
}

TEST(ExpertCostsTest, LieOnLinesBetweenThePointsAndBeyondTheLast) {
  const ExpertCosts costs = Costs(1);
  EXPECT_DOUBLE_EQ(costs.CpuSeconds(1), 1.5);
  EXPECT_DOUBLE_EQ(costs.CpuSeconds(3), 2.5);
  EXPECT_DOUBLE_EQ(costs.CpuSeconds(10), 6);
  EXPECT_DOUBLE_EQ(costs.CpuSeconds(32), 17);
  EXPECT_DOUBLE_EQ(costs.CardSeconds(16), 0.9);
}

TEST(ExpertCostsTest, OnePointHoldsForAllRows) {
  const ExpertCosts costs = {{{1, 2, 3}}, 1};
  EXPECT_EQ(costs.CpuSeconds(100), 2);
  EXPECT_EQ(costs.CardSeconds(100), 3);
}

TEST(ExpertCostsTest, FewRowsStayWhereTheyLie) {
  const ExpertSplit split = SplitExperts(Costs(/*copy_seconds=*/5), {1, 1}, 0, kAnyNumber);
  EXPECT_THAT(split.places, ElementsAre(kCpu, kCpu));
  EXPECT_DOUBLE_EQ(split.cpu_seconds, 3);
  EXPECT_DOUBLE_EQ(split.card_seconds, 0);
}

TEST(ExpertCostsTest, ManyRowsAreWorthTheirCopy) {
  const ExpertSplit split = SplitExperts(Costs(/*copy_seconds=*/5), {1, 16, 1}, 0, kAnyNumber);
  EXPECT_THAT(split.places, ElementsAre(kCpu, kCopy, kCpu));
  EXPECT_DOUBLE_EQ(split.card_seconds, 5.9);
  EXPECT_DOUBLE_EQ(split.seconds(), 5.9);
}

TEST(ExpertCostsTest, ACardThatIsBusyComputesLater) {
  EXPECT_THAT(SplitExperts(Costs(1), {4}, 0, kAnyNumber).places, ElementsAre(kCopy));
  EXPECT_THAT(SplitExperts(Costs(1), {4}, 2.8, kAnyNumber).places, ElementsAre(kCpu));
}

TEST(ExpertCostsTest, CopiesAreBounded) {
  EXPECT_THAT(SplitExperts(Costs(0.1), {16, 16, 16}, 0, 2).places, ElementsAre(kCopy, kCopy, kCpu));
  EXPECT_THAT(SplitExperts(Costs(0.1), {16, 16, 16}, 0, 0).places, ElementsAre(kCpu, kCpu, kCpu));
}

TEST(ExpertCostsTest, NeitherIsFarFromDoneWhenTheOtherIs) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<int64_t> rows(1 + rng() % 30);
    for (int64_t& count : rows) count = 1 + static_cast<int64_t>(rng() % 16);
    const ExpertCosts costs = Costs(0.1 + static_cast<double>(rng() % 40) / 10);
    const ExpertSplit split = SplitExperts(costs, rows, 0, kAnyNumber);
    // The CPU alone is no faster, and whoever ends last has but one expert more than the other.
    double cpu_alone = 0;
    double largest = 0;
    for (const int64_t count : rows) {
      cpu_alone += costs.CpuSeconds(count);
      largest = std::max(
          {largest, costs.CpuSeconds(count), costs.copy_seconds + costs.CardSeconds(count)});
    }
    EXPECT_LE(split.seconds(), cpu_alone + 1e-9);
    if (split.card_seconds > 0) {
      EXPECT_LE(split.card_seconds, split.cpu_seconds + largest + 1e-9);
    }
    EXPECT_LE(split.cpu_seconds, std::max(split.card_seconds, 0.0) + largest + 1e-9);
  }
}

}  // namespace
}  // namespace caravan
