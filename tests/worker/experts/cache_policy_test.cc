#include "worker/experts/cache_policy.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<CachePolicy> Policy(absl::string_view name) {
  absl::StatusOr<std::unique_ptr<CachePolicy>> policy = MakeCachePolicy(name);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *std::move(policy);
}

double ScoreOf(const CachePolicy& policy, const std::vector<ExpertUse>& uses) {
  double score = kNoScore;
  for (const ExpertUse& use : uses) score = policy.AfterUse(score, use);
  return score;
}

TEST(CachePolicyTest, NamesThoseThereAre) {
  for (const absl::string_view name : kCachePolicyNames) EXPECT_EQ(Policy(name)->name(), name);
  const absl::Status status = MakeCachePolicy("fifo").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("\"fifo\" among lru, lfu, router"));
}

TEST(CachePolicyTest, LruKnowsTheLastUseOnly) {
  const auto lru = Policy("lru");
  EXPECT_EQ(ScoreOf(*lru, {{3, 9, 9}, {7, 1, 0.1f}}), 7);
  EXPECT_LT(ScoreOf(*lru, {{3, 9, 9}, {6, 9, 9}}), ScoreOf(*lru, {{7, 1, 0.1f}}));
}

TEST(CachePolicyTest, LfuCountsRows) {
  const auto lfu = Policy("lfu");
  EXPECT_EQ(ScoreOf(*lfu, {{0, 1, 0.5f}}), 0);  // log2 of one use
  EXPECT_EQ(ScoreOf(*lfu, {{0, 1, 0.5f}, {0, 3, 0.5f}}), 2);
  EXPECT_GT(ScoreOf(*lfu, {{0, 1, 1}, {1, 1, 1}}), ScoreOf(*lfu, {{2, 1, 1}}));
}

TEST(CachePolicyTest, RouterCountsItsWeights) {
  const auto router = Policy("router");
  EXPECT_EQ(ScoreOf(*router, {{0, 3, 0.25f}, {0, 1, 0.25f}}), -1);
  EXPECT_LT(ScoreOf(*router, {{0, 1, 0.1f}, {1, 1, 0.1f}}), ScoreOf(*router, {{1, 1, 0.3f}}));
}

TEST(CachePolicyTest, ManyOldUsesCountLessThanFewNewOnes) {
  const auto lfu = Policy("lfu");
  std::vector<ExpertUse> once_loved;
  for (int64_t step = 0; step < 100; ++step) once_loved.push_back({step, 1, 1});
  EXPECT_GT(ScoreOf(*lfu, once_loved), ScoreOf(*lfu, {{110, 1, 1}, {111, 1, 1}}));
  EXPECT_LT(ScoreOf(*lfu, once_loved), ScoreOf(*lfu, {{100000, 1, 1}, {100001, 1, 1}}));
}

TEST(CachePolicyTest, ScoresStayFinite) {
  for (const absl::string_view name : kCachePolicyNames) {
    const auto policy = Policy(name);
    for (const float weight : {0.0f, -1.0f, 1e30f}) {
      const double score = ScoreOf(*policy, {{0, 1, weight}, {int64_t{1} << 40, 1, weight}});
      EXPECT_TRUE(std::isfinite(score)) << name;
      EXPECT_GT(score, kNoScore) << name;
    }
  }
}

TEST(CachePolicyTest, LaterUsesRaiseAllScoresByTheSame) {
  for (const absl::string_view name : kCachePolicyNames) {
    const auto policy = Policy(name);
    const double raise = ScoreOf(*policy, {{1000, 1, 1}}) - ScoreOf(*policy, {{0, 1, 1}});
    EXPECT_GT(raise, 0) << name;
    EXPECT_NEAR(ScoreOf(*policy, {{1003, 2, 0.5f}, {1400, 1, 0.25f}}) -
                    ScoreOf(*policy, {{3, 2, 0.5f}, {400, 1, 0.25f}}),
                raise, 1e-9)
        << name;
  }
}

}  // namespace
}  // namespace caravan
