#include "worker/experts/guess_gate.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// Runs steps of these costs, each of which brings one expert in. Returns how many guessed.
int64_t RunSteps(GuessGate& gate, int64_t steps, absl::Duration without, absl::Duration with) {
  int64_t guessed = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const bool guesses = gate.Guesses();
    guessed += guesses ? 1 : 0;
    gate.StepEnded(guesses ? with : without, 1);
  }
  return guessed;
}

constexpr absl::Duration kCost = absl::Milliseconds(10);
constexpr absl::Duration kLess = absl::Milliseconds(7);
constexpr absl::Duration kMore = absl::Milliseconds(13);

TEST(GuessGateTest, TriesBothWaysByTurnsAtFirst) {
  GuessGate gate;
  for (int i = 0; i < GuessGate::kTrialSteps; ++i) {
    EXPECT_EQ(gate.Guesses(), i % 2 == 1) << i;
    gate.StepEnded(kCost, 1);
  }
}

TEST(GuessGateTest, GuessesWhereThatSaves) {
  GuessGate gate;
  RunSteps(gate, GuessGate::kTrialSteps, kCost, kLess);
  EXPECT_EQ(RunSteps(gate, GuessGate::kFirstInterval, kCost, kLess), GuessGate::kFirstInterval);
}

TEST(GuessGateTest, DoesNotWhereThatCostsOrGainsLittle) {
  for (const absl::Duration with : {kMore, kCost, kCost * 0.97}) {
    GuessGate gate;
    RunSteps(gate, GuessGate::kTrialSteps, kCost, with);
    EXPECT_EQ(RunSteps(gate, GuessGate::kFirstInterval, kCost, with), 0) << with;
  }
}

TEST(GuessGateTest, TriesEverMoreSeldomWhatDidNotPay) {
  GuessGate gate;
  constexpr int64_t kTrialGuesses = GuessGate::kTrialSteps / 2;
  RunSteps(gate, GuessGate::kTrialSteps, kCost, kMore);
  int64_t interval = GuessGate::kFirstInterval;
  for (int trial = 0; trial < 8; ++trial) {
    EXPECT_EQ(RunSteps(gate, interval, kCost, kMore), 0) << trial;
    EXPECT_EQ(RunSteps(gate, GuessGate::kTrialSteps, kCost, kMore), kTrialGuesses) << trial;
    interval = std::min(2 * interval, GuessGate::kLastInterval);
  }
}

TEST(GuessGateTest, FindsOutThatGuessesPayNowAndThatTheyDoNoMore) {
  GuessGate gate;
  constexpr int64_t kLongest = GuessGate::kLastInterval + GuessGate::kTrialSteps;
  RunSteps(gate, 10 * kLongest, kCost, kMore);
  RunSteps(gate, kLongest, kCost, kLess);
  EXPECT_GT(RunSteps(gate, kLongest, kCost, kLess), kLongest * 9 / 10);
  RunSteps(gate, 10 * kLongest, kCost, kLess);
  RunSteps(gate, kLongest, kCost, kMore);
  EXPECT_LT(RunSteps(gate, kLongest, kCost, kMore), kLongest / 10);
}

TEST(GuessGateTest, ComparesCostsForEachExpert) {
  // Steps of many experts and of few, at random; with guesses each expert costs less.
  for (const unsigned seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    GuessGate gate;
    for (int i = 0; i < GuessGate::kTrialSteps; ++i) {
      const auto brought = static_cast<int64_t>(1 + random() % 100);
      gate.StepEnded((gate.Guesses() ? kLess : kCost) * brought, brought);
    }
    EXPECT_TRUE(gate.Guesses());
  }
}

TEST(GuessGateTest, StepsThatBroughtNothingTellNothing) {
  GuessGate gate;
  for (int i = 0; i < GuessGate::kTrialSteps; ++i) {
    for (int j = 0; j < 3; ++j) gate.StepEnded(kMore * 100, 0);
    EXPECT_EQ(gate.Guesses(), i % 2 == 1) << i;
    gate.StepEnded(gate.Guesses() ? kLess : kCost, 1);
  }
  EXPECT_TRUE(gate.Guesses());
}

TEST(GuessGateTest, SomeStallsDecideNothing) {
  for (const bool stalls_guess : {false, true}) {
    GuessGate gate;
    for (int i = 0; i < GuessGate::kTrialSteps; ++i) {
      const bool guesses = gate.Guesses();
      const bool stalls = guesses == stalls_guess && i < GuessGate::kTrialSteps / 3;
      gate.StepEnded((guesses ? kLess : kCost) * (stalls ? 1000 : 1), 1);
    }
    EXPECT_TRUE(gate.Guesses()) << stalls_guess;
  }
}

}  // namespace
}  // namespace caravan
