// The sampler over summaries of logits: what it decides is what it decides over all of them.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/logit_summary.h"
#include "model/sampler.h"
#include "tests/model/sampler_testing.h"

namespace caravan {
namespace {

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

TEST(SamplerSummaryTest, ASummaryGivesTheTokenOfAllLogits) {
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

TEST(SamplerSummaryTest, ASummaryLeavesOpenWhatItCannotKnow) {
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

TEST(SamplerSummaryTest, ASummaryScoresTheTokenThatItWasAskedFor) {
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

}  // namespace
}  // namespace caravan
