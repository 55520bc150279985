#include "worker/experts/synthetic_routing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

using Ids = std::vector<int32_t>;

Ids NextIds(SyntheticRouting& routing, int layer) {
  const SyntheticRouting::Row row = routing.Next(layer);
  return {row.expert_ids.begin(), row.expert_ids.end()};
}

/// How often each expert was chosen over `rows` rows of layer 0, most first.
std::vector<int> SortedCounts(SyntheticRouting& routing, int rows) {
  std::vector<int> counts(static_cast<size_t>(routing.options().n_routed_experts));
  for (int i = 0; i < rows; ++i) {
    for (const int32_t id : routing.Next(0).expert_ids) ++counts[static_cast<size_t>(id)];
  }
  std::sort(counts.begin(), counts.end(), std::greater<>());
  return counts;
}

TEST(SyntheticRoutingTest, ChoosesDistinctExpertsAndWeightsOfSumOne) {
  SyntheticRouting routing({.num_layers = 3, .n_routed_experts = 10, .num_experts_per_tok = 8});
  for (int i = 0; i < 300; ++i) {
    const SyntheticRouting::Row row = routing.Next(i % 3);
    ASSERT_EQ(row.expert_ids.size(), 8u);
    for (size_t j = 0; j < 8; ++j) {
      EXPECT_GE(row.expert_ids[j], j == 0 ? 0 : row.expert_ids[j - 1] + 1);
      EXPECT_LT(row.expert_ids[j], 10);
      EXPECT_GT(row.weights[j], 0);
    }
    EXPECT_NEAR(std::accumulate(row.weights.begin(), row.weights.end(), 0.0), 1, 1e-6);
  }
}

TEST(SyntheticRoutingTest, IsTheSameForTheSameSeed) {
  SyntheticRouting a({.seed = 7});
  SyntheticRouting b({.seed = 7});
  SyntheticRouting c({.seed = 8});
  int differ = 0;
  for (int i = 0; i < 100; ++i) {
    if (i == 50) {
      for (SyntheticRouting* each : {&a, &b, &c}) each->BeginTopic();
    }
    const Ids ids = NextIds(a, i % 58);
    EXPECT_EQ(ids, NextIds(b, i % 58));
    differ += ids != NextIds(c, i % 58);
  }
  EXPECT_GT(differ, 90);
}

// Whoever changes the order of draws changes benchmarks that others have published.
TEST(SyntheticRoutingTest, DrawsWhatItEverDrew) {
  SyntheticRouting routing({});
  EXPECT_EQ(NextIds(routing, 0), (Ids{31, 50, 83, 135, 177, 208, 225, 239}));
}

TEST(SyntheticRoutingTest, FollowsZipfsLaw) {
  constexpr int kRows = 40000;
  SyntheticRouting routing(
      {.zipf = 1, .sticky = 0, .num_layers = 1, .n_routed_experts = 16, .num_experts_per_tok = 1});
  const std::vector<int> counts = SortedCounts(routing, kRows);
  double sum = 0;
  for (int rank = 1; rank <= 16; ++rank) sum += 1.0 / rank;
  for (int rank = 1; rank <= 16; ++rank) {
    const double expected = kRows / (rank * sum);
    // Five standard deviations, which some of 16 pass once in a hundred thousand seeds.
    EXPECT_NEAR(counts[static_cast<size_t>(rank - 1)], expected, 5 * std::sqrt(expected)) << rank;
  }
}

TEST(SyntheticRoutingTest, StickyRowsRepeatThoseOfTheirSequence) {
  SyntheticRouting::Options options = {.zipf = 0, .sticky = 1, .num_sequences = 2};
  SyntheticRouting routing(options);
  const Ids first = NextIds(routing, 5);
  const Ids second = NextIds(routing, 5);
  EXPECT_NE(first, second);
  NextIds(routing, 6);  // of another layer
  EXPECT_EQ(NextIds(routing, 5), first);
  EXPECT_EQ(NextIds(routing, 5), second);

  options = {.zipf = 0, .sticky = 0.5, .num_layers = 1};
  SyntheticRouting half(options);
  int repeated = 0;
  Ids last = NextIds(half, 0);
  for (int i = 0; i < 2000; ++i) {
    const Ids ids = NextIds(half, 0);
    Ids both;
    std::set_intersection(ids.begin(), ids.end(), last.begin(), last.end(),
                          std::back_inserter(both));
    repeated += static_cast<int>(both.size());
    last = ids;
  }
  // Half of 8, and some of the others by chance.
  EXPECT_NEAR(repeated / 2000.0, 4.1, 0.2);
}

TEST(SyntheticRoutingTest, ATopicChangesWhichExpertsAreChosenMost) {
  SyntheticRouting routing({.zipf = 3, .sticky = 0, .num_layers = 40, .num_experts_per_tok = 1});
  const auto favourites = [&] {
    Ids result;
    for (int layer = 0; layer < 40; ++layer) {
      std::vector<int> counts(256);
      for (int i = 0; i < 50; ++i) ++counts[static_cast<size_t>(NextIds(routing, layer)[0])];
      result.push_back(
          static_cast<int32_t>(std::max_element(counts.begin(), counts.end()) - counts.begin()));
    }
    return result;
  };
  const Ids before = favourites();
  EXPECT_EQ(favourites(), before);
  routing.BeginTopic();
  const Ids after = favourites();
  int changed = 0;
  for (size_t i = 0; i < before.size(); ++i) changed += before[i] != after[i];
  EXPECT_GT(changed, 8);
  EXPECT_LT(changed, 32);
}

TEST(SyntheticRoutingTest, RefusesWhatIsOutOfRange) {
  EXPECT_TRUE(SyntheticRouting::Check({}).ok());
  EXPECT_THAT(SyntheticRouting::Check({.zipf = -1}).message(), HasSubstr("zipf is -1, not 0 to"));
  EXPECT_THAT(SyntheticRouting::Check({.sticky = 1.5}).message(), HasSubstr("sticky is 1.5"));
  EXPECT_THAT(SyntheticRouting::Check({.num_layers = 0}).message(), HasSubstr("layers is 0"));
  EXPECT_THAT(SyntheticRouting::Check({.n_routed_experts = 0}).message(), HasSubstr("experts is"));
  EXPECT_THAT(SyntheticRouting::Check({.num_experts_per_tok = 257}).message(),
              HasSubstr("k is 257, not 1 to 256"));
  EXPECT_THAT(SyntheticRouting::Check({.num_sequences = 0}).message(), HasSubstr("rows is 0"));
}

}  // namespace
}  // namespace caravan
