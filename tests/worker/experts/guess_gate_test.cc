#include "worker/experts/guess_gate.h"

#include <algorithm>
#include <random>
#include <vector>

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

/// Of a trial, which draws: within three standard errors of a half.
constexpr int64_t kFewestGuesses = GuessGate::kTrialSteps / 2 - 12;
constexpr int64_t kMostGuesses = GuessGate::kTrialSteps / 2 + 12;

TEST(GuessGateTest, TriesBothWaysAtFirst) {
  GuessGate gate;
  const int64_t guessed = RunSteps(gate, GuessGate::kTrialSteps, kCost, kMore);
  EXPECT_GE(guessed, kFewestGuesses);
  EXPECT_LE(guessed, kMostGuesses);
}

TEST(GuessGateTest, TriesBothWaysWithEachOfTheMicroBatchesThatComeInTurns) {
  for (int micro_batches = 2; micro_batches <= 8; ++micro_batches) {
    GuessGate gate;
    std::vector<int> guessed(static_cast<size_t>(micro_batches));
    for (int i = 0; i < GuessGate::kTrialSteps; ++i) {
      if (gate.Guesses()) ++guessed[static_cast<size_t>(i % micro_batches)];
      gate.StepEnded(kCost, 1);
    }
    const int steps = GuessGate::kTrialSteps / micro_batches;
    for (const int each : guessed) {
      EXPECT_GE(each, steps / 5) << micro_batches;
      EXPECT_LE(each, steps - steps / 5) << micro_batches;
    }
  }
}

/// Share of steps that guess, where micro-batches come in turns of which each costs more than the
/// one before, and guesses cost `with` times that.
double ShareOfGuesses(int micro_batches, double with) {
  constexpr int kSteps = 16 * GuessGate::kLastInterval;
  GuessGate gate;
  int guessed = 0;
  for (int i = 0; i < kSteps; ++i) {
    const bool guesses = gate.Guesses();
    guessed += guesses ? 1 : 0;
    gate.StepEnded(kCost * (1 + 2 * (i % micro_batches)) * (guesses ? with : 1), 1);
  }
  return static_cast<double>(guessed) / kSteps;
}

TEST(GuessGateTest, IsNotMisledByMicroBatchesThatCostMoreThanOthers) {
  for (int micro_batches = 2; micro_batches <= 4; ++micro_batches) {
    EXPECT_LT(ShareOfGuesses(micro_batches, 1), 0.1) << micro_batches;
    EXPECT_GT(ShareOfGuesses(micro_batches, 0.6), 0.9) << micro_batches;
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
  RunSteps(gate, GuessGate::kTrialSteps, kCost, kMore);
  int64_t interval = GuessGate::kFirstInterval;
  for (int trial = 0; trial < 8; ++trial) {
    EXPECT_EQ(RunSteps(gate, interval, kCost, kMore), 0) << trial;
    EXPECT_GE(RunSteps(gate, GuessGate::kTrialSteps, kCost, kMore), kFewestGuesses) << trial;
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
    gate.StepEnded(gate.Guesses() ? kLess : kCost, 1);
  }
  EXPECT_TRUE(gate.Guesses());
  EXPECT_EQ(RunSteps(gate, GuessGate::kFirstInterval, kCost, kLess), GuessGate::kFirstInterval);
}

TEST(GuessGateTest, DoesNotGuessForeverWhereNothingIsMissing) {
  for (const int64_t steps_before : {0, 1, 2, 3, GuessGate::kTrialSteps}) {
    GuessGate gate;
    RunSteps(gate, steps_before, kCost, kLess);
    for (int i = 0; i < GuessGate::kIdleSteps; ++i) gate.StepEnded(kCost, 0);
    EXPECT_FALSE(gate.Guesses()) << steps_before;
    // Once something is, it finds out again.
    RunSteps(gate, GuessGate::kFirstInterval + GuessGate::kTrialSteps, kCost, kLess);
    EXPECT_TRUE(gate.Guesses()) << steps_before;
  }
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
