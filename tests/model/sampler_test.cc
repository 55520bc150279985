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

namespace caravan {
namespace {

using ::testing::StartsWith;

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

v1::SamplingHistory History(const std::vector<uint32_t>& prompt,
                            const std::vector<uint32_t>& reply) {
  v1::SamplingHistory history;
  history.mutable_prompt_token_ids()->Add(prompt.begin(), prompt.end());
  history.mutable_reply_token_ids()->Add(reply.begin(), reply.end());
  return history;
}

void AddBias(v1::SamplingParams& params, uint32_t token_id, float value) {
  v1::LogitBias& bias = *params.add_logit_biases();
  bias.set_token_id(token_id);
  bias.set_bias(value);
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

/// Rounded to float, of sums that may be off by WeightSumError of a vocabulary of thousands.
void ExpectSameLogProbability(float actual, float expected) {
  if (std::isinf(expected)) {
    EXPECT_EQ(actual, expected);
    return;
  }
  EXPECT_NEAR(actual, expected, 0x1p-23 * std::abs(expected) + 1e-11);
}

/// As a card would make it, whose sums come in another order.
LogitSummary Summarize(const std::vector<float>& logits, const v1::SamplingParams& params,
                       int64_t position, double off = 0) {
  LogitSummary summary = SummarizeLogitRow(logits, QuestionFor(params, position));
  const double error = off * WeightSumError(std::ssize(logits));
  summary.before_drawn -= error * summary.weight;
  summary.through_drawn += error * summary.weight;
  summary.weight *= 1 + error;
  summary.sum *= 1 + error;
  return summary;
}

/// What a model of language may say: a few likely tokens, far above a long tail.
std::vector<float> PeakedLogits(std::mt19937& random, size_t vocab_size) {
  std::normal_distribution<float> normal(0, 1.5f);
  std::vector<float> logits(vocab_size);
  for (float& logit : logits) logit = normal(random);
  for (int i = 0; i < 12; ++i) logits[random() % vocab_size] = 14 - static_cast<float>(i) / 2;
  return logits;
}

TEST(SamplerTest, ASummaryGivesTheTokenOfAllLogits) {
  std::map<std::string, std::pair<int, int>> decided;  // of how many
  for (uint32_t seed = 0; seed < 6000; ++seed) {
    std::mt19937 random(seed);
    const auto one_of = [&](std::initializer_list<float> values) {
      return values.begin()[random() % values.size()];
    };
    const size_t vocab_size = std::vector<size_t>{5, 128, 129, 400, 3000, 3000}[random() % 6];
    std::vector<float> logits = PeakedLogits(random, vocab_size);
    const uint32_t kind = random() % 5;
    for (float& logit : logits) {
      if (kind == 1) logit = std::round(logit);      // ties
      if (kind == 2) logit = std::min(logit, 1.5f);  // no peaks
      if (kind == 3) logit = one_of({kNan, -kInfinity, kInfinity, logit, logit, logit, logit});
    }
    v1::SamplingParams params;
    params.set_seed(seed);
    params.set_num_alternatives(random() % 4);
    params.set_temperature(one_of({0, 0.3f, 0.6f, 1, 1, 1.5f, 1e-45f}));
    std::string cuts;
    if (random() % 2 == 0) {
      params.set_top_p(one_of({0.2f, 0.9f, 0.95f, 0.999f, 1}));
      cuts += " top_p";
    }
    if (random() % 3 == 0) {
      params.set_top_k(static_cast<uint32_t>(one_of({1, 20, 127, 128, 129, 200, 5000})));
      cuts += params.top_k() <= kSummaryCandidates ? " top_k" : " high top_k";
    }
    if (random() % 3 == 0) {
      params.set_min_p(one_of({0.001f, 0.05f, 0.3f, 1}));
      cuts += " min_p";
    }
    v1::SamplingHistory history;
    if (random() % 3 == 0) {
      cuts += " penalties";
      params.set_frequency_penalty(one_of({0, 0, 0.5f, -0.5f}));
      params.set_presence_penalty(one_of({0, 0, 1.5f, -1}));
      params.set_repetition_penalty(one_of({0, 1.1f, 1.5f, 0.8f}));
      for (int i = 0; i < 40; ++i) {
        history.add_prompt_token_ids(random() % static_cast<uint32_t>(vocab_size));
        history.add_reply_token_ids(random() % static_cast<uint32_t>(vocab_size));
      }
      const auto likeliest = std::max_element(logits.begin(), logits.end()) - logits.begin();
      history.add_reply_token_ids(static_cast<uint32_t>(likeliest));
    }
    if (random() % 4 == 0) {
      cuts += " biases";
      AddBias(params, 0, one_of({-100, -3, 3, 20}));
      AddBias(params, 3, one_of({-100, -3, 3, 20}));
    }
    if (params.temperature() == 0) cuts = "greedy" + cuts;
    const int64_t position = seed % 100;
    const ScoredToken expected = SampleToken(logits, params, history, position);
    auto& [num_decided, num_all] = decided[(kind == 0 ? "peaked " : "odd ") + cuts];
    ++num_all;
    for (const double off : {0.0, 0.4, -0.4}) {
      const LogitSummary summary = Summarize(logits, params, position, off);
      const std::optional<ScoredToken> sampled = SampleToken(summary, params, history, position);
      if (!sampled.has_value()) continue;
      if (off == 0) ++num_decided;
      ASSERT_EQ(sampled->token_id, expected.token_id) << seed << cuts;
      ExpectSameLogProbability(sampled->log_probability, expected.log_probability);
      ASSERT_EQ(sampled->alternatives.size(), expected.alternatives.size()) << seed << cuts;
      for (size_t i = 0; i < expected.alternatives.size(); ++i) {
        ASSERT_EQ(sampled->alternatives[i].token_id, expected.alternatives[i].token_id) << seed;
        ExpectSameLogProbability(sampled->alternatives[i].log_probability,
                                 expected.alternatives[i].log_probability);
      }
    }
  }
  // What is asked for most often needs no more.
  for (const std::string name :
       {"peaked ", "odd ", "peaked greedy", "odd greedy", "peaked  top_k", "odd  top_k",
        "odd greedy top_p", "peaked greedy top_k", "peaked  top_p top_k", "odd  top_p top_k"}) {
    EXPECT_GE(decided[name].second, 5) << name;
    EXPECT_EQ(decided[name].first, decided[name].second) << name;
  }
  for (const std::string name :
       {"peaked  top_p", "peaked  min_p", "peaked  top_p min_p", "peaked greedy penalties",
        "peaked  top_p penalties", "peaked  top_k penalties"}) {
    EXPECT_GE(decided[name].second, 5) << name;
    EXPECT_GT(decided[name].first, decided[name].second * 0.8) << name;
  }
}

TEST(SamplerTest, ASummaryLeavesOpenWhatItCannotKnow) {
  std::vector<float> logits(1000);
  for (size_t id = 0; id < logits.size(); ++id) logits[id] = 10 - static_cast<float>(id) / 100;
  const auto draw = [&](const v1::SamplingParams& params, const v1::SamplingHistory& history) {
    const std::optional<int32_t> drawn =
        DrawToken(Summarize(logits, params, 5), params, history, 5);
    if (drawn.has_value()) {
      EXPECT_EQ(*drawn, DrawToken(logits, params, history, 5));
    }
    return drawn;
  };
  // Of the whole, 128 tokens hold 0.72.
  EXPECT_TRUE(draw(Params(1, 0, 0.7f), {}).has_value());
  EXPECT_FALSE(draw(Params(1, 0, 0.9f), {}).has_value());
  EXPECT_TRUE(draw(Params(1, 128, 0.9f), {}).has_value());
  EXPECT_FALSE(draw(Params(1, 129), {}).has_value());
  EXPECT_TRUE(draw(Params(1, 1000), {}).has_value());
  v1::SamplingParams min_p = Params(1);
  min_p.set_min_p(0.3f);  // ln 0.3 = -1.2: 121 tokens
  EXPECT_TRUE(draw(min_p, {}).has_value());
  min_p.set_min_p(0.2f);
  EXPECT_FALSE(draw(min_p, {}).has_value());

  // Tokens that it has not lie at 8.72 at most.
  v1::SamplingParams biased = Params(0);
  AddBias(biased, 900, 1.2f);
  EXPECT_TRUE(draw(biased, {}).has_value());
  AddBias(biased, 901, 1.3f);
  EXPECT_FALSE(draw(biased, {}).has_value());
  v1::SamplingParams repeating = Params(0);
  repeating.set_repetition_penalty(1.1f);  // 10 / 1.1 = 9.1, and 9.99 comes first
  EXPECT_TRUE(draw(repeating, History({0, 500}, {})).has_value());
  std::vector<uint32_t> all(128);
  std::iota(all.begin(), all.end(), 0);
  repeating.set_repetition_penalty(2);
  EXPECT_FALSE(draw(repeating, History(all, {})).has_value());

  // Draws from the whole vocabulary: not where the target lies at a token's end.
  const v1::SamplingParams plain = Params(1);
  EXPECT_TRUE(draw(plain, {}).has_value());
  LogitSummary summary = Summarize(logits, plain, 5);
  summary.through_drawn = QuestionFor(plain, 5).quantile * summary.weight * (1 + 1e-13);
  EXPECT_EQ(DrawToken(summary, plain, {}, 5), std::nullopt);
  summary.drawn_id = -1;
  EXPECT_EQ(DrawToken(summary, plain, {}, 5), std::nullopt);
}

TEST(SamplerTest, ASummaryScoresTheTokenThatItWasAskedFor) {
  std::mt19937 random(3);
  const std::vector<float> logits = PeakedLogits(random, 3000);
  for (int32_t id = 0; id < 3000; id += 7) {
    const ScoredToken expected = ScoreToken(logits, id, 20);
    const LogitSummary summary = SummarizeLogitRow(logits, {1, id, -1});
    const ScoredToken scored = ScoreToken(summary, id, 20);
    ExpectSameLogProbability(scored.log_probability, expected.log_probability);
    ASSERT_EQ(scored.alternatives.size(), 20u);
    EXPECT_EQ(scored.alternatives[19].token_id, expected.alternatives[19].token_id);
  }
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
