#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::FloatEq;
using ::testing::FloatNear;
using ::testing::Pointwise;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice RouteRow(Backend& backend, const RouterShape& shape, const std::vector<float>& logits,
                const std::vector<float>& bias) {
  Choice choice;
  choice.ids.resize(shape.num_experts_per_tok, -1);
  choice.weights.resize(shape.num_experts_per_tok, -1);
  backend.Route(shape, logits.data(), bias.empty() ? nullptr : bias.data(), 1, choice.ids.data(),
                choice.weights.data());
  return choice;
}

/// The logit whose sigmoid is `score`.
float Logit(double score) { return static_cast<float>(std::log(score / (1 - score))); }

std::vector<float> Logits(const std::vector<double>& scores) {
  std::vector<float> logits;
  for (const double score : scores) logits.push_back(Logit(score));
  return logits;
}

TEST(RouterTest, BiasChoosesButDoesNotWeigh) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2};
  shape.routed_scaling_factor = 2.5f;
  for (const NamedBackend& tested : AllBackends()) {
    const Choice choice =
        RouteRow(*tested.backend, shape, Logits({0.8, 0.6, 0.1, 0.4}), {0, 0, 0.7f, 0.05f});
    // Biased: 0.8, 0.6, 0.8, 0.45. Weights from 0.8 and 0.1, normalised, times 2.5.
    EXPECT_THAT(choice.ids, ElementsAre(0, 2)) << tested.name;
    EXPECT_THAT(choice.weights,
                ElementsAre(FloatNear(2.5f * 8 / 9, 2e-6f), FloatNear(2.5f / 9, 2e-6f)))
        << tested.name;
  }
}

TEST(RouterTest, TiesGoToTheLowerId) {
  const RouterShape shape = {.n_routed_experts = 6, .num_experts_per_tok = 3};
  for (const NamedBackend& tested : AllBackends()) {
    EXPECT_THAT(RouteRow(*tested.backend, shape, {0, 1, 0, 1, 0, 0}, std::vector<float>(6)).ids,
                ElementsAre(0, 1, 3))
        << tested.name;
    EXPECT_THAT(RouteRow(*tested.backend, shape, std::vector<float>(6), std::vector<float>(6)).ids,
                ElementsAre(0, 1, 2))
        << tested.name;
  }
}

TEST(RouterTest, NoauxTcRanksGroupsByTheirTwoBestBiasedScores) {
  RouterShape shape = {.n_routed_experts = 9, .num_experts_per_tok = 3, .n_group = 3};
  shape.topk_group = 1;
  for (const NamedBackend& tested : AllBackends()) {
    // Best two: 0.9 + 0.1, 0.5 + 0.6, 0.4 + 0.4 + its bias of 0.2: the last wins, with all three.
    const Choice choice =
        RouteRow(*tested.backend, shape, Logits({0.9, 0.1, 0.1, 0.5, 0.6, 0.5, 0.4, 0.4, 0.3}),
                 {0, 0, 0, 0, 0, 0, 0.2f, 0.2f, 0});
    EXPECT_THAT(choice.ids, ElementsAre(6, 7, 8)) << tested.name;
    EXPECT_THAT(choice.weights,
                Pointwise(FloatNear(1e-6f), std::vector<float>{4 / 11.f, 4 / 11.f, 3 / 11.f}))
        << tested.name;
  }
}

TEST(RouterTest, LosingGroupsAreOutEvenWhenTheWinnersBiasedScoresAreNegative) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2, .n_group = 2};
  for (const NamedBackend& tested : AllBackends()) {
    const Choice choice = RouteRow(*tested.backend, shape, {0, 0, 0, 0}, {-2, -2, -1, -1.5f});
    EXPECT_THAT(choice.ids, ElementsAre(2, 3)) << tested.name;
    EXPECT_THAT(choice.weights, ElementsAre(FloatEq(0.5f), FloatEq(0.5f))) << tested.name;
  }
}

TEST(RouterTest, EqualGroupsGoToTheLowerOne) {
  RouterShape shape = {.n_routed_experts = 6, .num_experts_per_tok = 2, .n_group = 3};
  shape.topk_group = 2;
  for (const NamedBackend& tested : AllBackends()) {
    EXPECT_THAT(RouteRow(*tested.backend, shape, {1, 0, 2, 2, 0, 1}, std::vector<float>(6)).ids,
                ElementsAre(2, 3))
        << tested.name;
    shape.num_experts_per_tok = 3;
    EXPECT_THAT(RouteRow(*tested.backend, shape, {1, 0, 2, 2, 0, 1}, std::vector<float>(6)).ids,
                ElementsAre(0, 2, 3))
        << tested.name;
    shape.num_experts_per_tok = 2;
  }
}

TEST(RouterTest, GroupLimitedGreedyRanksGroupsByTheirBestExpert) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2, .n_group = 2};
  shape.scoring_func = ScoringFunc::kSoftmax;
  shape.topk_method = TopkMethod::kGroupLimitedGreedy;
  shape.norm_topk_prob = false;
  shape.routed_scaling_factor = 16;
  const float ln2 = std::log(2.0f);
  for (const NamedBackend& tested : AllBackends()) {
    // Softmax: 8/15, 1/15, 4/15, 2/15 of exp(logit) 8, 1, 4, 2. The first group has the best one.
    const Choice choice = RouteRow(*tested.backend, shape, {3 * ln2, 0, 2 * ln2, ln2}, {});
    EXPECT_THAT(choice.ids, ElementsAre(0, 1)) << tested.name;
    EXPECT_THAT(choice.weights,
                ElementsAre(FloatNear(128 / 15.f, 1e-5f), FloatNear(16 / 15.f, 1e-5f)))
        << tested.name;
  }
}

TEST(RouterTest, GreedyKnowsNoGroupsAndScalesOnlyWithoutNormalising) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2, .n_group = 2};
  shape.scoring_func = ScoringFunc::kSoftmax;
  shape.topk_method = TopkMethod::kGreedy;
  shape.routed_scaling_factor = 16;
  const float ln2 = std::log(2.0f);
  for (const NamedBackend& tested : AllBackends()) {
    shape.norm_topk_prob = false;
    Choice choice = RouteRow(*tested.backend, shape, {3 * ln2, 0, 2 * ln2, ln2}, {});
    EXPECT_THAT(choice.ids, ElementsAre(0, 2)) << tested.name;
    EXPECT_THAT(choice.weights,
                ElementsAre(FloatNear(128 / 15.f, 1e-5f), FloatNear(64 / 15.f, 1e-5f)))
        << tested.name;
    shape.norm_topk_prob = true;
    choice = RouteRow(*tested.backend, shape, {3 * ln2, 0, 2 * ln2, ln2}, {});
    EXPECT_THAT(choice.weights, ElementsAre(FloatNear(8 / 12.f, 1e-6f), FloatNear(4 / 12.f, 1e-6f)))
        << tested.name;
  }
}

TEST(RouterTest, ExtremeLogitsGiveFiniteWeights) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2};
  for (const ScoringFunc scoring : {ScoringFunc::kSigmoid, ScoringFunc::kSoftmax}) {
    shape.scoring_func = scoring;
    for (const NamedBackend& tested : AllBackends()) {
      for (const float logit : {-200.0f, 200.0f, 1e30f, -1e30f}) {
        const Choice choice =
            RouteRow(*tested.backend, shape, std::vector<float>(4, logit), {0, 0, 0, 0});
        EXPECT_THAT(choice.ids, ElementsAre(0, 1)) << tested.name << " logit " << logit;
        for (const float weight : choice.weights) {
          EXPECT_TRUE(weight >= 0 && weight <= 0.5f) << tested.name << " logit " << logit;
        }
      }
    }
  }
}

TEST(RouterTest, NanAndInfinityStillChooseDistinctExpertsInRange) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  for (const NamedBackend& tested : AllBackends()) {
    for (uint64_t seed = 0; seed < 300; ++seed) {
      Rng rng(seed);
      RouterShape shape = {.n_routed_experts = 12, .num_experts_per_tok = 5, .n_group = 4};
      shape.topk_group = RandomInt(rng, 1, 4);  // 1: fewer experts than are to be chosen
      shape.topk_method = static_cast<TopkMethod>(seed % 3);
      shape.scoring_func = static_cast<ScoringFunc>(seed / 3 % 2);
      std::vector<float> logits = RandomFloats(rng, 12), bias = RandomFloats(rng, 12);
      for (std::vector<float>* values : {&logits, &bias}) {
        for (float& value : *values) {
          const int64_t kind = RandomInt(rng, 0, 5);
          value = kind == 0 ? kNan : kind == 1 ? kInf : kind == 2 ? -kInf : value;
        }
      }
      const Choice choice = RouteRow(*tested.backend, shape, logits, bias);
      for (size_t i = 0; i < choice.ids.size(); ++i) {
        ASSERT_GE(choice.ids[i], i == 0 ? 0 : choice.ids[i - 1] + 1) << tested.name << seed;
        ASSERT_LT(choice.ids[i], 12) << tested.name << " seed " << seed;
      }
    }
  }
}

TEST(RouterTest, ANanScoreIsChosenLast) {
  RouterShape shape = {.n_routed_experts = 4, .num_experts_per_tok = 2};
  for (const NamedBackend& tested : AllBackends()) {
    const Choice choice = RouteRow(*tested.backend, shape, {NAN, -50, NAN, -60}, {0, 0, 0, 0});
    EXPECT_THAT(choice.ids, ElementsAre(1, 3)) << tested.name;
  }
}

TEST(RouterTest, ChoosesAmongHundreds) {
  constexpr int kExperts = 600;
  const RouterShape shape = {.n_routed_experts = kExperts, .num_experts_per_tok = 4};
  std::vector<float> logits(kExperts);
  for (int e = 0; e < kExperts; ++e) logits[e] = 0.01f * static_cast<float>(e * 7 % kExperts);
  for (const NamedBackend& tested : AllBackends()) {
    // 7 times these are 597, 599, 596 and 598 modulo 600.
    EXPECT_THAT(RouteRow(*tested.backend, shape, logits, std::vector<float>(kExperts)).ids,
                ElementsAre(171, 257, 428, 514))
        << tested.name;
  }
}

TEST(RouterTest, AgreesWithTheReferenceOnRandomRows) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    RouterShape shape;
    shape.n_group = RandomInt(rng, 1, 8);
    shape.topk_group = RandomInt(rng, 1, shape.n_group);
    const int64_t group_size = RandomInt(rng, 1, 32);
    shape.n_routed_experts = shape.n_group * group_size;
    shape.num_experts_per_tok =
        RandomInt(rng, 1, std::min<int64_t>(8, shape.topk_group * group_size));
    shape.scoring_func = static_cast<ScoringFunc>(seed % 2);
    shape.topk_method = static_cast<TopkMethod>(seed / 2 % 3);
    shape.norm_topk_prob = rng() % 2 == 0;
    shape.routed_scaling_factor = 2.5f;
    // Steps of 1/4: equal logits tie in float as in double, others differ by far more than
    // rounding.
    std::vector<float> logits(shape.n_routed_experts);
    for (float& logit : logits) logit = static_cast<float>(RandomInt(rng, -16, 16)) / 4;
    const std::vector<float> bias = RandomFloats(rng, shape.n_routed_experts, 0.1f);
    const Choice expected = RouteRow(*MakeReferenceBackend(), shape, logits, bias);
    // A softmax's total of n terms, and up to 8 chosen weights: each weight is a product and a
    // quotient of positive sums, so its relative error is below the number of operations.
    const double relative =
        kUnit * static_cast<double>(shape.n_routed_experts + shape.num_experts_per_tok + 10);
    for (const NamedBackend& tested : TestedBackends()) {
      const Choice choice = RouteRow(*tested.backend, shape, logits, bias);
      ASSERT_THAT(choice.ids, ElementsAreArray(expected.ids)) << tested.name << " seed " << seed;
      for (size_t i = 0; i < choice.weights.size(); ++i) {
        ASSERT_NEAR(choice.weights[i], expected.weights[i], relative * expected.weights[i])
            << tested.name << " seed " << seed;
      }
    }
  }
}

}  // namespace
}  // namespace caravan
