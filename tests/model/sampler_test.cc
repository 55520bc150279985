#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/sampler_testing.h"

namespace caravan {
namespace {

using ::testing::StartsWith;

/// Without a history.
ScoredToken Sample(const std::vector<float>& logits, const v1::SamplingParams& params,
                   int64_t position) {
  return SampleToken(logits, params, {}, position);
}

/// How often each token is drawn at positions [0, num_draws).
std::vector<int> Histogram(const std::vector<float>& logits, const v1::SamplingParams& params,
                           int num_draws, const v1::SamplingHistory& history = {}) {
  std::vector<int> counts(logits.size(), 0);
  for (int position = 0; position < num_draws; ++position) {
    const int32_t id = SampleToken(logits, params, history, position).token_id;
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

/// What a draw should follow, computed plainly: adjust, divide, sort, cut, divide by the sum.
std::vector<double> Expected(const std::vector<float>& logits, const v1::SamplingParams& params,
                             const v1::SamplingHistory& history) {
  struct Token {
    size_t id;
    double logit;
    double p = 0;
  };
  std::vector<Token> tokens;
  const auto& prompt = history.prompt_token_ids();
  const auto& reply = history.reply_token_ids();
  for (size_t id = 0; id < logits.size(); ++id) {
    double logit = logits[id];
    for (const v1::LogitBias& bias : params.logit_biases()) {
      if (bias.token_id() == id) logit += bias.bias();
    }
    const auto in_prompt = std::count(prompt.begin(), prompt.end(), id);
    const auto in_reply = std::count(reply.begin(), reply.end(), id);
    if (in_prompt + in_reply > 0 && params.repetition_penalty() != 0) {
      logit = logit > 0 ? logit / params.repetition_penalty() : logit * params.repetition_penalty();
    }
    logit -= static_cast<double>(in_reply) * params.frequency_penalty();
    if (in_reply > 0) logit -= params.presence_penalty();
    tokens.push_back({id, logit / params.temperature()});
  }
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const Token& a, const Token& b) { return a.logit > b.logit; });
  const auto normalise = [&] {
    double sum = 0;
    for (const Token& token : tokens) sum += std::exp(token.logit);
    for (Token& token : tokens) token.p = std::exp(token.logit) / sum;
  };
  if (params.top_k() > 0 && params.top_k() < tokens.size()) tokens.resize(params.top_k());
  normalise();
  if (params.top_p() > 0) {
    double reached = 0;
    size_t kept = 0;
    while (kept < tokens.size() && reached < params.top_p()) reached += tokens[kept++].p;
    tokens.resize(kept);
  }
  const double least = params.min_p() * tokens[0].p;
  while (tokens.back().p < least) tokens.pop_back();
  normalise();
  std::vector<double> probabilities(logits.size(), 0);
  for (const Token& token : tokens) probabilities[token.id] = token.p;
  return probabilities;
}

// Quantiles of the chi-square distribution at 1 - 1e-6: a right sampler with seeds chosen blindly
// fails one in a million.
constexpr double kChiSquare1 = 23.93;
constexpr double kChiSquare2 = 27.63;
constexpr double kChiSquare7 = 40.52;
constexpr double kChiSquare15 = 56.49;

const std::vector<float> kLogits = {0.5f, -1.0f, 2.0f, 1.0f, 0.0f, 1.5f, -3.0f, 0.25f};

TEST(SamplerTest, TakesTheLikeliestAtTemperatureZero) {
  EXPECT_EQ(Sample(kLogits, Params(0), 7).token_id, 2);
  EXPECT_EQ(Sample(kLogits, Params(0, 3, 0.5f, 99), 7).token_id, 2);
  EXPECT_EQ(Sample(kLogits, Params(1, 1), 7).token_id, 2);
  EXPECT_EQ(Sample(kLogits, Params(1e-6f), 7).token_id, 2);
  EXPECT_EQ(Sample(std::vector<float>{-4.0f}, Params(1), 0).token_id, 0);
}

TEST(SamplerTest, GivesEqualLogitsToTheLowerId) {
  const std::vector<float> logits = {1, 3, 2, 3, 3};
  EXPECT_EQ(Sample(logits, Params(0), 0).token_id, 1);
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
    forward.push_back(Sample(kLogits, Params(1, 0, 0.9f, 77), p).token_id);
  }
  for (int64_t p = 499; p >= 0; --p) {
    Sample(kLogits, Params(1, 0, 0.9f, 78), p);
    EXPECT_EQ(Sample(kLogits, Params(1, 0, 0.9f, 77), p).token_id, forward[static_cast<size_t>(p)])
        << "position " << p;
  }
}

TEST(SamplerTest, DrawsIndependentlyAtNeighboursInSeedAndPosition) {
  // Four equal tokens: pairs of draws should spread evenly over sixteen cells.
  const std::vector<float> logits(4, 1.0f);
  std::vector<int> by_position(16, 0);
  std::vector<int> by_seed(16, 0);
  const auto draw = [&](uint64_t seed, int64_t position) {
    return static_cast<size_t>(Sample(logits, Params(1, 0, 0, seed), position).token_id);
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
    const ScoredToken token = Sample(kLogits, Params(3, 4, 0.9f, 8), position);
    // Rounded to float once, from a double that is right to many digits more.
    EXPECT_FLOAT_EQ(token.log_probability,
                    static_cast<float>(std::log(p[static_cast<size_t>(token.token_id)])));
  }
  const std::vector<float> large = {30000.0f, 29999.0f};
  EXPECT_FLOAT_EQ(Sample(large, Params(0), 0).log_probability, -std::log1p(std::exp(-1.0f)));
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
        const ScoredToken token = Sample(logits, params, position);
        EXPECT_GE(token.token_id, 0);
        EXPECT_LT(token.token_id, 3);
        EXPECT_FALSE(std::isnan(token.log_probability));
        EXPECT_LE(token.log_probability, 0);
      }
    }
  }
}

TEST(SamplerTest, NeverPrefersNanAndSharesInfinity) {
  EXPECT_EQ(Sample(std::vector<float>{kNan, -5, kNan}, Params(0), 0).token_id, 1);
  EXPECT_EQ(Histogram({kNan, -5, kNan}, Params(1), 100)[1], 100);
  EXPECT_LT(ChiSquare(Histogram({kInfinity, 7, kInfinity}, Params(1), 10000), {0.5, 0, 0.5}),
            kChiSquare1);
  EXPECT_FLOAT_EQ(Sample(std::vector<float>{kNan, kNan}, Params(0), 0).log_probability,
                  std::log(0.5f));
}

TEST(SamplerTest, DrawsByEachParameterAsComputedPlainly) {
  // Tokens 0, 2, 6 lie in the prompt, 2, 5 and three times 3 in the reply.
  const v1::SamplingHistory history = History({0, 2, 6}, {3, 2, 3, 5, 3});
  std::vector<std::pair<std::string, v1::SamplingParams>> cases;
  const auto add = [&](const std::string& name) -> v1::SamplingParams& {
    return cases.emplace_back(name, Params(1)).second;
  };
  add("frequency_penalty").set_frequency_penalty(0.7f);
  add("negative frequency_penalty").set_frequency_penalty(-0.5f);
  add("presence_penalty").set_presence_penalty(1.5f);
  add("negative presence_penalty").set_presence_penalty(-1.5f);
  add("repetition_penalty").set_repetition_penalty(1.8f);
  add("repetition_penalty below 1").set_repetition_penalty(0.6f);
  add("min_p").set_min_p(0.2f);
  add("min_p of 1").set_min_p(1);
  v1::SamplingParams& biased = add("logit_bias");
  AddBias(biased, 1, 3.5f);
  AddBias(biased, 2, -100);
  v1::SamplingParams& all = add("all together");
  all.set_temperature(1.5f);
  all.set_top_k(7);
  all.set_top_p(0.95f);
  all.set_min_p(0.1f);
  all.set_frequency_penalty(0.3f);
  all.set_presence_penalty(-0.4f);
  all.set_repetition_penalty(1.3f);
  AddBias(all, 6, 4);
  AddBias(all, 4, -0.5f);
  for (auto& [name, params] : cases) {
    for (const uint64_t seed : {1u, 2u}) {
      params.set_seed(seed);
      const std::vector<double> expected = Expected(kLogits, params, history);
      EXPECT_LT(ChiSquare(Histogram(kLogits, params, 20000, history), expected), kChiSquare7)
          << name << ", seed " << seed;
    }
  }
}

TEST(SamplerTest, MinPIsMeasuredByWhatTheTemperatureLeaves) {
  // The second has half of the first's probability; at temperature 0.5 a quarter.
  const std::vector<float> logits = {std::log(0.4f), std::log(0.2f), std::log(0.1f)};
  v1::SamplingParams params = Params(1);
  params.set_min_p(0.45f);
  EXPECT_LT(ChiSquare(Histogram(logits, params, 20000), {2.0 / 3, 1.0 / 3, 0}), kChiSquare1);
  params.set_temperature(0.5f);
  EXPECT_EQ(Histogram(logits, params, 100)[0], 100);
}

TEST(SamplerTest, PenaltiesAndBiasesMoveTheLikeliest) {
  v1::SamplingParams params = Params(0);
  const auto greedy = [&](const v1::SamplingHistory& history) {
    return SampleToken(kLogits, params, history, 7).token_id;
  };
  params.set_frequency_penalty(0.2f);
  EXPECT_EQ(greedy(History({2, 2, 2, 2}, {2, 2})), 2);  // 2 - 2 * 0.2 > 1.5
  EXPECT_EQ(greedy(History({}, {2, 2, 2})), 5);
  params.set_frequency_penalty(0);
  params.set_presence_penalty(0.6f);
  EXPECT_EQ(greedy(History({2}, {})), 2);
  EXPECT_EQ(greedy(History({}, {2})), 5);
  params.set_presence_penalty(0);
  params.set_repetition_penalty(2);
  EXPECT_EQ(greedy({}), 2);
  EXPECT_EQ(greedy(History({2}, {})), 5);
  params.set_repetition_penalty(1);
  AddBias(params, 6, 5.5f);
  EXPECT_EQ(greedy({}), 6);
}

TEST(SamplerTest, ReportsTheLogitsAsGivenWhateverMovesTheDraw) {
  const std::vector<double> p = Softmax(kLogits, 1);
  v1::SamplingParams params = Params(2, 3);
  params.set_num_alternatives(3);
  params.set_repetition_penalty(5);
  params.set_presence_penalty(2);
  AddBias(params, 6, 50);
  const ScoredToken token = SampleToken(kLogits, params, History({}, {2}), 11);
  EXPECT_EQ(token.token_id, 6);
  EXPECT_EQ(token, ScoreToken(kLogits, 6, 3));
  EXPECT_FLOAT_EQ(token.log_probability, static_cast<float>(std::log(p[6])));
}

TEST(SamplerTest, ScoresATokenBesideTheLikeliest) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(1000);
  for (float& logit : logits) logit = std::round(normal(random) * 16) / 16;  // so that some tie
  const std::vector<double> p = Softmax(logits, 1);
  std::vector<int32_t> ranked(logits.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (const int num_alternatives : {0, 1, 5, kMaxAlternatives}) {
    for (const int32_t id : {0, 17, 999}) {
      const ScoredToken token = ScoreToken(logits, id, num_alternatives);
      EXPECT_EQ(token.token_id, id);
      EXPECT_FLOAT_EQ(token.log_probability,
                      static_cast<float>(std::log(p[static_cast<size_t>(id)])));
      ASSERT_EQ(token.alternatives.size(), static_cast<size_t>(num_alternatives));
      for (size_t i = 0; i < token.alternatives.size(); ++i) {
        EXPECT_EQ(token.alternatives[i].token_id, ranked[i]);
        EXPECT_FLOAT_EQ(token.alternatives[i].log_probability,
                        static_cast<float>(std::log(p[static_cast<size_t>(ranked[i])])));
      }
    }
  }
}

TEST(SamplerTest, ASmallVocabularyHasFewerAlternatives) {
  const ScoredToken token = ScoreToken(std::vector<float>{kNan, 1, -kInfinity}, 1, 10);
  ASSERT_EQ(token.alternatives.size(), 3u);
  EXPECT_EQ(token.alternatives[0], (ScoredToken::Alternative{1, 0}));
  EXPECT_EQ(token.alternatives[1], (ScoredToken::Alternative{0, -kInfinity}));
  EXPECT_EQ(token.alternatives[2], (ScoredToken::Alternative{2, -kInfinity}));
}

TEST(SamplerTest, ChecksParamsByName) {
  EXPECT_TRUE(CheckSamplingParams(v1::SamplingParams()).ok());
  EXPECT_TRUE(CheckSamplingParams(Params(100, UINT32_MAX, 1, UINT64_MAX)).ok());
  struct Field {
    std::string name;
    std::function<void(v1::SamplingParams&, float)> set;
    float least;
    float most;
  };
  for (const Field& field : std::vector<Field>{
           {"temperature", [](auto&p, float x) { p.set_temperature(x); }, 0, 100},
           {"top_p", [](auto&p, float x) { p.set_top_p(x); }, 0, 1},
           {"min_p", [](auto&p, float x) { p.set_min_p(x); }, 0, 1},
           {"frequency_penalty", [](auto&p, float x) { p.set_frequency_penalty(x); }, -2, 2},
           {"presence_penalty", [](auto&p, float x) { p.set_presence_penalty(x); }, -2, 2},
           {"repetition_penalty", [](auto&p, float x) { p.set_repetition_penalty(x); }, 0, 100},
           {"logit_bias of token 7", [](auto&p, float x) { AddBias(p, 7, x); }, -100, 100}}) {
    for (const float value : {field.least, field.most, field.least - 0.1f, field.most + 0.1f,
                              kInfinity, -kInfinity, kNan}) {
      v1::SamplingParams params;
      field.set(params, value);
      const absl::Status status = CheckSamplingParams(params);
      if (value >= field.least && value <= field.most) {
        EXPECT_TRUE(status.ok()) << status;
        continue;
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field.name << " " << value;
      EXPECT_THAT(std::string(status.message()), StartsWith(field.name + ": must be from "));
    }
  }
  v1::SamplingParams params;
  params.set_num_alternatives(kMaxAlternatives);
  EXPECT_TRUE(CheckSamplingParams(params).ok());
  params.set_num_alternatives(kMaxAlternatives + 1);
  EXPECT_EQ(CheckSamplingParams(params).message(), "num_alternatives: must be from 0 to 20, is 21");
}

TEST(SamplerTest, ChecksLogitBiasesByToken) {
  v1::SamplingParams params;
  for (uint32_t id = 0; id < kMaxLogitBiases; ++id) AddBias(params, id, 1);
  EXPECT_TRUE(CheckSamplingParams(params).ok());
  EXPECT_TRUE(CheckSamplingParams(params, kMaxLogitBiases).ok());
  EXPECT_EQ(CheckSamplingParams(params, kMaxLogitBiases - 1).message(),
            "logit_bias: token 1023 is outside the vocabulary of 1023");
  AddBias(params, kMaxLogitBiases, 1);
  EXPECT_EQ(CheckSamplingParams(params).message(),
            "logit_bias: must name at most 1024 tokens, names 1025");
  params.clear_logit_biases();
  AddBias(params, 9, 1);
  AddBias(params, 9, 1);
  EXPECT_EQ(CheckSamplingParams(params).message(), "logit_bias: names token 9 twice");
}

}  // namespace
}  // namespace caravan
