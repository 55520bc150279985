#include "cli/text_score.h"

#include <cmath>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(LikelihoodSumTest, PerplexityIsTheInverseOfTheGeometricMean) {
  LikelihoodSum sum;
  sum.Add(std::log(0.5));
  sum.Add(std::log(0.125));
  EXPECT_EQ(sum.tokens(), 2);
  EXPECT_DOUBLE_EQ(sum.mean_nll(), 2 * std::log(2.0));
  EXPECT_DOUBLE_EQ(sum.perplexity(), 4);
}

TEST(DivergenceSumTest, TellsMeanLargestAndAgreement) {
  // p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2.
  const float two = std::log(2.0f);
  const TokenDistribution p({two, 0, 0});
  const TokenDistribution q({0, two, 0});
  DivergenceSum sum;
  sum.Add(p, p);
  sum.Add(p, q);
  sum.Add(q, q);
  sum.Add(q, q);
  EXPECT_NEAR(sum.largest(), 0.25 * std::log(2.0), 1e-7);  // ln 2 is a float
  EXPECT_DOUBLE_EQ(sum.mean(), sum.largest() / 4);
  EXPECT_EQ(sum.top1_agreement(), 0.75);
}

TEST(DivergenceSumTest, IsThatOfTheReferenceFromTheModel) {
  const TokenDistribution p({0, 0});
  const TokenDistribution q({0, 3});
  DivergenceSum sum;
  sum.Add(p, q);
  EXPECT_EQ(sum.mean(), p.DivergenceFrom(q));
  EXPECT_NE(sum.mean(), q.DivergenceFrom(p));
}

}  // namespace
}  // namespace caravan
