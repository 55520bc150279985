#include "model/sampler.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

v1::SamplingParams Params(float temperature, uint32_t top_k = 0, float top_p = 0,
                          uint64_t seed = 0) {
  v1::SamplingParams params;
  params.set_temperature(temperature);
  params.set_top_k(top_k);
  params.set_top_p(top_p);
  params.set_seed(seed);
  return params;
}

/// How often each token is drawn at positions [0, num_draws).
std::vector<int> Histogram(const std::vector<float>& logits, const v1::SamplingParams& params,
                           int num_draws) {
  std::vector<int> counts(logits.size(), 0);
  for (int position = 0; position < num_draws; ++position) {
    const int32_t id = SampleToken(logits, params, position).token_id;
    ++counts.at(static_cast<size_t>(id));
  }
  return counts;
}

/// Pearson's statistic of `counts` against `probabilities`, whose zeros must not be drawn.
double ChiSquare(const std::vector<int>& counts, const std::vector<double>& probabilities) {
  const int num_draws = std::accumulate(counts.begin(), counts.end(), 0);
  double sum = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i] * num_draws;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
      continue;
    }
    sum += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return sum;
}

std::vector<double> Softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(logit / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

// Quantiles of the chi-square distribution at 1 - 1e-6: a right sampler with seeds chosen blindly
// fails one in a million.
constexpr double kChiSquare1 = 23.93;
constexpr double kChiSquare2 = 27.63;
constexpr double kChiSquare7 = 40.52;
constexpr double kChiSquare15 = 56.49;

const std::vector<float> kLogits = {0.5f, -1.0f, 2.0f, 1.0f, 0.0f, 1.5f, -3.0f, 0.25f};

TEST(SamplerTest, TakesTheLikeliestAtTemperatureZero) {
  EXPECT_EQ(SampleToken(kLogits, Params(0), 7).token_id, 2);
  EXPECT_EQ(SampleToken(kLogits, Params(0, 3, 0.5f, 99), 7).token_id, 2);
  EXPECT_EQ(SampleToken(kLogits, Params(1, 1), 7).token_id, 2);
  EXPECT_EQ(SampleToken(kLogits, Params(1e-6f), 7).token_id, 2);
  EXPECT_EQ(SampleToken(std::vector<float>{-4.0f}, Params(1), 0).token_id, 0);
}

TEST(SamplerTest, GivesEqualLogitsToTheLowerId) {
  const std::vector<float> logits = {1, 3, 2, 3, 3};
  EXPECT_EQ(SampleToken(logits, Params(0), 0).token_id, 1);
  const std::vector<int> top2 = Histogram(logits, Params(1, 2), 200);
  EXPECT_EQ(top2[1] + top2[3], 200);
  EXPECT_GT(top2[3], 0);
  // 0.3 of the probability is within one of the three that tie: the lowest id.
  EXPECT_EQ(Histogram(logits, Params(1, 0, 0.2f), 100)[1], 100);
}

TEST(SamplerTest, DrawsBySoftmaxOfTemperature) {
  for (const uint64_t seed : {0u, 1u, 12345u}) {
    EXPECT_LT(ChiSquare(Histogram(kLogits, Params(1, 0, 0, seed), 40000), Softmax(kLogits, 1)),
              kChiSquare7)
        << "seed " << seed;
    EXPECT_LT(ChiSquare(Histogram(kLogits, Params(2.5f, 0, 1, seed), 40000), Softmax(kLogits, 2.5)),
              kChiSquare7)
        << "seed " << seed;
  }
}

TEST(SamplerTest, KeepsTheTopK) {
  std::vector<double> expected(kLogits.size(), 0);
  const double sum = std::exp(2.0) + std::exp(1.5) + std::exp(1.0);
  expected[2] = std::exp(2.0) / sum;
  expected[5] = std::exp(1.5) / sum;
  expected[3] = std::exp(1.0) / sum;
  EXPECT_LT(ChiSquare(Histogram(kLogits, Params(1, 3, 0, 4), 20000), expected), kChiSquare2);
  EXPECT_LT(ChiSquare(Histogram(kLogits, Params(1, 1000, 0, 4), 20000), Softmax(kLogits, 1)),
            kChiSquare7);
}

TEST(SamplerTest, KeepsTheSmallestSetOfTopP) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f),
                                     std::log(0.25f)};
  // 0.5 + 0.25 reaches 0.7, 0.5 alone does not.
  EXPECT_LT(ChiSquare(Histogram(logits, Params(1, 0, 0.7f, 5), 20000), {0, 2.0 / 3, 0, 1.0 / 3}),
            kChiSquare1);
  EXPECT_EQ(Histogram(logits, Params(1, 0, 0.4f, 5), 100)[1], 100);
  EXPECT_EQ(Histogram(logits, Params(1, 0, 1e-30f, 5), 100)[1], 100);
}

TEST(SamplerTest, FiltersByTemperatureThenTopKThenTopP) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.15f),
                                     std::log(0.25f)};
  // Of the two that top_k keeps, 0.5 holds 2/3: it alone reaches 0.6, though not of the whole.
  EXPECT_EQ(Histogram(logits, Params(1, 2, 0.6f, 6), 100)[1], 100);
  // At temperature 0.5 probabilities are squared: 0.5 holds 0.725 and reaches 0.7 alone.
  EXPECT_EQ(Histogram(logits, Params(0.5f, 0, 0.7f, 6), 100)[1], 100);
}

TEST(SamplerTest, FixesTheDrawBySeedAndPositionAlone) {
  std::vector<int32_t> forward;
  for (int64_t p = 0; p < 500; ++p) {
    forward.push_back(SampleToken(kLogits, Params(1, 0, 0.9f, 77), p).token_id);
  }
  for (int64_t p = 499; p >= 0; --p) {
    SampleToken(kLogits, Params(1, 0, 0.9f, 78), p);
    EXPECT_EQ(SampleToken(kLogits, Params(1, 0, 0.9f, 77), p).token_id,
              forward[static_cast<size_t>(p)])
        << "position " << p;
  }
}

TEST(SamplerTest, DrawsIndependentlyAtNeighboursInSeedAndPosition) {
  // Four equal tokens: pairs of draws should spread evenly over sixteen cells.
  const std::vector<float> logits(4, 1.0f);
  std::vector<int> by_position(16, 0);
  std::vector<int> by_seed(16, 0);
  const auto draw = [&](uint64_t seed, int64_t position) {
    return static_cast<size_t>(SampleToken(logits, Params(1, 0, 0, seed), position).token_id);
  };
  for (int i = 0; i < 16000; ++i) {
    ++by_position[4 * draw(3, 2 * i) + draw(3, 2 * i + 1)];
    ++by_seed[4 * draw(static_cast<uint64_t>(2 * i), 9) +
              draw(static_cast<uint64_t>(2 * i) + 1, 9)];
  }
  const std::vector<double> even(16, 1.0 / 16);
  EXPECT_LT(ChiSquare(by_position, even), kChiSquare15);
  EXPECT_LT(ChiSquare(by_seed, even), kChiSquare15);
}

TEST(SamplerTest, ReportsLogProbabilityOfTheRawLogits) {
  const std::vector<double> p = Softmax(kLogits, 1);
  for (int64_t position = 0; position < 50; ++position) {
    const ScoredToken token = SampleToken(kLogits, Params(3, 4, 0.9f, 8), position);
    // Rounded to float once, from a double that is right to many digits more.
    EXPECT_FLOAT_EQ(token.log_probability,
                    static_cast<float>(std::log(p[static_cast<size_t>(token.token_id)])));
  }
  const std::vector<float> large = {30000.0f, 29999.0f};
  EXPECT_FLOAT_EQ(SampleToken(large, Params(0), 0).log_probability, -std::log1p(std::exp(-1.0f)));
}

TEST(SamplerTest, StaysInRangeOnAnyLogits) {
  const std::vector<std::vector<float>> cases = {
      {kNan, kNan, kNan},    {-kInfinity, -kInfinity, -kInfinity}, {kNan, 1, kNan},
      {kInfinity, 1, 2},     {kInfinity, kInfinity, kNan},         {-kInfinity, kNan, 3e38f},
      {3e38f, -3e38f, 3e38f}};
  for (const std::vector<float>& logits : cases) {
    for (const v1::SamplingParams& params :
         {Params(0), Params(1), Params(1e-45f), Params(100), Params(1, 2), Params(1, 0, 0.5f),
          Params(1, 2, 0.999f)}) {
      for (int64_t position = 0; position < 20; ++position) {
        const ScoredToken token = SampleToken(logits, params, position);
        EXPECT_GE(token.token_id, 0);
        EXPECT_LT(token.token_id, 3);
        EXPECT_FALSE(std::isnan(token.log_probability));
        EXPECT_LE(token.log_probability, 0);
      }
    }
  }
}

TEST(SamplerTest, NeverPrefersNanAndSharesInfinity) {
  EXPECT_EQ(SampleToken(std::vector<float>{kNan, -5, kNan}, Params(0), 0).token_id, 1);
  EXPECT_EQ(Histogram({kNan, -5, kNan}, Params(1), 100)[1], 100);
  EXPECT_LT(ChiSquare(Histogram({kInfinity, 7, kInfinity}, Params(1), 10000), {0.5, 0, 0.5}),
            kChiSquare1);
  EXPECT_FLOAT_EQ(SampleToken(std::vector<float>{kNan, kNan}, Params(0), 0).log_probability,
                  std::log(0.5f));
}

TEST(SamplerTest, ChecksParamsByName) {
  EXPECT_TRUE(CheckSamplingParams(Params(0)).ok());
  EXPECT_TRUE(CheckSamplingParams(Params(100, UINT32_MAX, 1, UINT64_MAX)).ok());
  for (const float temperature : {-0.1f, 100.1f, kInfinity, -kInfinity, kNan}) {
    const absl::Status status = CheckSamplingParams(Params(temperature));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("temperature"));
  }
  for (const float top_p : {-0.1f, 1.1f, kInfinity, kNan}) {
    const absl::Status status = CheckSamplingParams(Params(1, 0, top_p));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("top_p"));
  }
}

}  // namespace
}  // namespace caravan
