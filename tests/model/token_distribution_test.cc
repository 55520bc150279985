#include "model/token_distribution.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

// A handful of roundings in double, of values below 10.
constexpr double kTolerance = 1e-14;

TEST(TokenDistributionTest, IsTheSoftmaxOfTheLogits) {
  // Shares 1 : 2 : 5, whatever is added to all.
  for (const float shift : {0.0f, 64.0f, -64.0f}) {
    const float two = std::log(2.0f);
    const float five = std::log(5.0f);
    const TokenDistribution distribution({shift, shift + two, shift + five});
    const double a = shift;
    const double b = shift + two;  // as rounded to float
    const double c = shift + five;
    const double log_sum = std::log(std::exp(a - c) + std::exp(b - c) + 1) + c;
    EXPECT_NEAR(distribution.LogProbability(0), a - log_sum, 100 * kTolerance);
    EXPECT_NEAR(distribution.LogProbability(1), b - log_sum, 100 * kTolerance);
    EXPECT_NEAR(distribution.LogProbability(2), c - log_sum, 100 * kTolerance);
    // The logits are floats: up to 2^-18 away below 128.
    EXPECT_NEAR(std::exp(distribution.LogProbability(2)), 5.0 / 8, 0x1p-17);
  }
}

TEST(TokenDistributionTest, HugeLogitsOverflowNothing) {
  const TokenDistribution distribution({3e38f, -3e38f, 3e38f});
  EXPECT_NEAR(distribution.LogProbability(0), -std::log(2.0), kTolerance);
  EXPECT_EQ(distribution.LogProbability(1),
            -2 * static_cast<double>(3e38f) + distribution.LogProbability(0));
}

TEST(TokenDistributionTest, TheFirstOfEqualsIsLikeliest) {
  EXPECT_EQ(TokenDistribution({1, 3, 3, 2}).likeliest(), 1);
  EXPECT_EQ(TokenDistribution({-1}).likeliest(), 0);
}

TEST(TokenDistributionTest, DivergenceIsThatWorkedOutByHand) {
  // p = (1/2, 1/2), q = (1/5, 4/5).
  const TokenDistribution p({0, 0});
  const TokenDistribution q({0, std::log(4.0f)});
  const double log4 = std::log(4.0f);  // the float
  const double q0 = 1 / (1 + std::exp(log4));
  const double q1 = 1 - q0;
  EXPECT_NEAR(p.DivergenceFrom(q), 0.5 * std::log(0.5 / q0) + 0.5 * std::log(0.5 / q1), kTolerance);
  EXPECT_NEAR(q.DivergenceFrom(p), q0 * std::log(q0 / 0.5) + q1 * std::log(q1 / 0.5), kTolerance);
  // ln(5/4) in the other words: 0.5 ln(5/2) + 0.5 ln(5/8).
  EXPECT_NEAR(p.DivergenceFrom(q), 0.5 * std::log(25.0 / 16), 1e-7);
  // Not the same both ways.
  EXPECT_GT(std::abs(p.DivergenceFrom(q) - q.DivergenceFrom(p)), 0.02);
}

TEST(TokenDistributionTest, DivergenceFromItselfIsExactlyZero) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(std::sin(static_cast<float>(i)) * 20);
  EXPECT_EQ(TokenDistribution(logits).DivergenceFrom(TokenDistribution(logits)), 0);
}

TEST(TokenDistributionTest, WhatNeverComesCountsNothing) {
  const float never = -std::numeric_limits<float>::infinity();
  const TokenDistribution p({never, 0, 0});
  EXPECT_NEAR(p.DivergenceFrom(TokenDistribution({0, 0, 0})), std::log(1.5), kTolerance);
  EXPECT_EQ(TokenDistribution({0, 0, 0}).DivergenceFrom(p),
            std::numeric_limits<double>::infinity());
}

TEST(TokenDistributionTest, ANaNAnywhereShows) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const TokenDistribution good({1, 2, 3});
  for (const std::vector<float>& logits :
       {std::vector<float>{nan, 2, 3}, {1, nan, 3}, {1, 2, nan}, {nan, nan, nan}}) {
    const TokenDistribution bad(logits);
    for (int32_t id = 0; id < 3; ++id) EXPECT_TRUE(std::isnan(bad.LogProbability(id)));
    EXPECT_TRUE(std::isnan(good.DivergenceFrom(bad)));
  }
}

}  // namespace
}  // namespace caravan
