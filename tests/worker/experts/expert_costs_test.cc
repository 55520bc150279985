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

ExpertCosts::Point At(int64_t rows, double cpu_seconds, double copy_seconds) {
  return {.rows = rows,
          .cpu_seconds = cpu_seconds,
          .cpu_beside_seconds = cpu_seconds,
          .copy_beside_seconds = copy_seconds,
          .card_seconds = cpu_seconds / 10};
}

// A CPU that takes a second an expert and half of one more a row, a card that takes a tenth of
// that, neither slower beside the other.
ExpertCosts Costs(double copy_seconds) {
  ExpertCosts costs;
  costs.points = {At(1, 1.5, copy_seconds), At(4, 3, copy_seconds), At(16, 9, copy_seconds)};
  costs.copy_seconds = copy_seconds;
  return costs;
}

// With one row an expert, memory is the CPU's limit, and the CPU with more: copies slow it by half
// and take twice as long, and not at all.
ExpertCosts SharedMemory() {
  ExpertCosts costs = Costs(4);
  costs.points[0].cpu_beside_seconds = 2.25;
  costs.points[0].copy_beside_seconds = 8;
  return costs;
}

TEST(ExpertCostsTest, LieOnLinesBetweenThePointsAndBeyondTheLast) {
  const ExpertCosts costs = Costs(1);
  EXPECT_DOUBLE_EQ(costs.At(1, &ExpertCosts::Point::cpu_seconds), 1.5);
  EXPECT_DOUBLE_EQ(costs.At(3, &ExpertCosts::Point::cpu_seconds), 2.5);
  EXPECT_DOUBLE_EQ(costs.At(10, &ExpertCosts::Point::cpu_seconds), 6);
  EXPECT_DOUBLE_EQ(costs.At(32, &ExpertCosts::Point::cpu_seconds), 17);
  EXPECT_DOUBLE_EQ(costs.At(16, &ExpertCosts::Point::card_seconds), 0.9);
}

TEST(ExpertCostsTest, MoreRowsNeverTakeLess) {
  ExpertCosts costs = Costs(1);
  costs.points[2].cpu_seconds = 2;
  EXPECT_DOUBLE_EQ(costs.At(16, &ExpertCosts::Point::cpu_seconds), 3);
}

TEST(ExpertCostsTest, ACopyBesideManyRowsMayTakeLess) {
  const ExpertCosts costs = SharedMemory();
  EXPECT_DOUBLE_EQ(costs.CopyBesideSeconds(1), 8);
  EXPECT_DOUBLE_EQ(costs.CopyBesideSeconds(2.5), 6);
  EXPECT_DOUBLE_EQ(costs.CopyBesideSeconds(100), 4);
}

TEST(ExpertCostsTest, OnePointHoldsForAllRows) {
  ExpertCosts costs;
  costs.points = {At(1, 2, 5)};
  EXPECT_EQ(costs.At(100, &ExpertCosts::Point::cpu_seconds), 2);
  EXPECT_EQ(costs.CopyBesideSeconds(100), 5);
}

TEST(ExpertCostsTest, AVisitTakesAsLongAsWhoEndsLast) {
  ExpertCosts costs = Costs(5);
  costs.visit_seconds = 100;
  costs.visit_row_seconds = 10;
  SharedVisit visit;
  visit.rows = 2;
  visit.cpu_rows = {1, 4};
  EXPECT_DOUBLE_EQ(ForetellSeconds(costs, visit), 120 + 4.5);
  visit.copies = 1;
  visit.copied_card_seconds = 0.25;
  EXPECT_DOUBLE_EQ(ForetellSeconds(costs, visit), 120 + 5.25);
  visit.card_busy_seconds = 6;
  EXPECT_DOUBLE_EQ(ForetellSeconds(costs, visit), 120 + 6);
}

TEST(ExpertCostsTest, TheHostsMemoryIsTheOthersWhenOneIsDone) {
  const ExpertCosts costs = SharedMemory();
  // Eight seconds of copying, in which the CPU has done 8 / 9 of its four experts; the rest alone.
  const SharedVisit longer_cpu = {.rows = 1,
                                  .cpu_rows = {1, 1, 1, 1},
                                  .copies = 1,
                                  .copied_card_seconds = 0,
                                  .card_busy_seconds = 0};
  EXPECT_DOUBLE_EQ(ForetellSeconds(costs, longer_cpu), 8 + 6.0 / 9);
  // And the other way round: the CPU takes 2.25 s, in which 9 / 32 of a copy are done.
  const SharedVisit longer_copy = {
      .rows = 1, .cpu_rows = {1}, .copies = 1, .copied_card_seconds = 0, .card_busy_seconds = 0};
  EXPECT_DOUBLE_EQ(ForetellSeconds(costs, longer_copy), 2.25 + 4 * 23.0 / 32);
}

TEST(ExpertCostsTest, ASplitCountsWithWhatBothTakeTogether) {
  // Alone either would take the second expert as soon.
  const ExpertSplit split = SplitExperts(SharedMemory(), {1, 1, 1}, 0, kAnyNumber);
  EXPECT_THAT(split.places, ElementsAre(kCpu, kCpu, kCpu));
  EXPECT_DOUBLE_EQ(split.cpu_seconds, 6.75);
  EXPECT_DOUBLE_EQ(split.copy_seconds, 8);
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
      const auto many = static_cast<double>(count);
      const double cpu = costs.At(many, &ExpertCosts::Point::cpu_beside_seconds);
      const double card = costs.At(many, &ExpertCosts::Point::card_seconds);
      cpu_alone += cpu;
      largest = std::max({largest, cpu, costs.copy_seconds + card});
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
