#include "coordinator/speculation_gate.h"

#include <random>

#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr int64_t kWindow = SpeculationGate::kWindow;

/// What steps take and give, with drafts and without.
struct Machine {
  double with_drafts_ms = 1;
  double without_drafts_ms = 1;
  double acceptance = 0;  // of one draft a step
  double noise = 0;       // of ten steps one takes up to so many times as long
};

/// A gate in front of a simulated machine.
class Bench {
 public:
  explicit Bench(int num_stages = 1) : gate_(num_stages) {}

  /// One step of `num_decoding` sequences, sent and come home; whether it drafted.
  bool Step(const Machine& machine, int64_t num_decoding = 1, int64_t prompt_rows = 0) {
    SpeculationGate::Step step;
    step.drafts = gate_.Drafts(num_decoding);
    step.num_decoding = num_decoding;
    step.decoding_slices = num_decoding;
    step.prompt_rows = prompt_rows;
    step.sampled_tokens = num_decoding;
    double ms = machine.without_drafts_ms;
    if (step.drafts) {
      ms = machine.with_drafts_ms;
      std::bernoulli_distribution accepted(machine.acceptance);
      for (int64_t i = 0; i < num_decoding; ++i) step.sampled_tokens += accepted(random_) ? 1 : 0;
    }
    if (random_() % 10 == 0)
      ms *= std::uniform_real_distribution<double>(1, 1 + machine.noise)(random_);
    step.round_trip = absl::Milliseconds(ms);
    gate_.StepReturned(step);
    return step.drafts;
  }

  /// Of `steps` steps, how many drafted.
  int64_t Count(int64_t steps, const Machine& machine, int64_t num_decoding = 1) {
    int64_t drafted = 0;
    for (int64_t i = 0; i < steps; ++i) drafted += Step(machine, num_decoding) ? 1 : 0;
    return drafted;
  }

  SpeculationGate& gate() { return gate_; }

 private:
  SpeculationGate gate_;
  std::mt19937 random_{20240610};
};

TEST(SpeculationGateTest, BeginsWithDraftsThenComparesOnce) {
  Bench bench;
  const Machine pays = {1.2, 1, 0.8};
  // The first step went round behind nothing that is known.
  EXPECT_EQ(bench.Count(kWindow + 1, pays), kWindow + 1);
  EXPECT_EQ(bench.Count(kWindow + 1, pays), 0);
  EXPECT_EQ(bench.Count(SpeculationGate::kFirstInterval, pays), SpeculationGate::kFirstInterval);
}

TEST(SpeculationGateTest, StaysOnWherePays) {
  Bench bench;
  EXPECT_GT(bench.Count(20000, {1.2, 1, 0.8}), 0.95 * 20000);
}

TEST(SpeculationGateTest, GoesOffWhereDraftsAreRefused) {
  Bench bench;
  EXPECT_LT(bench.Count(20000, {1.2, 1, 0.1}), 0.08 * 20000);
}

TEST(SpeculationGateTest, GoesOffWhereRowsAreDear) {
  // Nearly all accepted, but twice the rows take twice the time.
  Bench bench;
  EXPECT_LT(bench.Count(20000, {2.2, 1, 0.95}, 64), 0.05 * 20000);
}

TEST(SpeculationGateTest, KeepsToItsWayWhereItMakesNoDifference) {
  Bench bench;
  EXPECT_GT(bench.Count(20000, {2, 1, 1}), 0.95 * 20000);
}

TEST(SpeculationGateTest, NoiseDoesNotTurnIt) {
  for (const double acceptance : {0.9, 0.05}) {
    Bench bench;
    const int64_t drafted = bench.Count(20000, {1.3, 1, acceptance, 50});
    if (acceptance > 0.5) {
      EXPECT_GT(drafted, 0.9 * 20000);
    } else {
      EXPECT_LT(drafted, 0.1 * 20000);
    }
  }
}

TEST(SpeculationGateTest, NoticesSoonThatDraftsAreRefusedNow) {
  Bench bench;
  bench.Count(20000, {1.2, 1, 0.9});  // trials have become rare
  const int64_t drafted = bench.Count(5000, {1.2, 1, 0});
  EXPECT_LT(drafted, SpeculationGate::kFirstInterval + 0.1 * 5000);
}

TEST(SpeculationGateTest, FindsOutThatDraftsPayAgain) {
  Bench bench;
  const Machine loses = {1.2, 1, 0};
  const Machine pays = {1.2, 1, 0.9};
  bench.Count(20000, loses);
  EXPECT_GT(bench.Count(20000, pays), 0.85 * 20000);
}

TEST(SpeculationGateTest, TellsLoadsApart) {
  Bench bench;
  const Machine alone = {1.1, 1, 0.8};
  const Machine crowded = {2, 1, 0.8};
  int64_t alone_drafted = 0;
  int64_t crowded_drafted = 0;
  for (int i = 0; i < 100; ++i) {
    alone_drafted += bench.Count(100, alone, 1);
    crowded_drafted += bench.Count(100, crowded, 32);
  }
  EXPECT_GT(alone_drafted, 0.9 * 10000);
  EXPECT_LT(crowded_drafted, 0.1 * 10000);
  EXPECT_TRUE(bench.gate().Drafts(1));
  EXPECT_TRUE(bench.gate().Drafts(5)) << "of which nothing is known";
  for (const int64_t like : {25, 28, 32}) EXPECT_FALSE(bench.gate().Drafts(like)) << like;
  for (const int64_t unlike : {24, 33}) EXPECT_TRUE(bench.gate().Drafts(unlike)) << unlike;
}

TEST(SpeculationGateTest, StepsFullOfPromptsTeachNothing) {
  Bench bench;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(bench.Step({100, 1, 0}, /*num_decoding=*/2, /*prompt_rows=*/3));
  }
  // As many prompt rows as decoding sequences are borne.
  for (int i = 0; i < 1000; ++i) bench.Step({100, 1, 0}, 2, 2);
  EXPECT_FALSE(bench.gate().Drafts(2));
}

TEST(SpeculationGateTest, StepsBehindThoseOfTheOtherWayDoNotCount) {
  constexpr int kStages = 4;
  SpeculationGate gate(kStages);
  SpeculationGate::Step step;
  step.num_decoding = kStages;
  step.decoding_slices = 1;
  step.sampled_tokens = 2;
  // After each change so many steps as there are stages are slow; were they to count, each way
  // would look as slow.
  bool before = false;
  int slow = 0;
  int64_t drafted = 0;
  for (int i = 0; i < 2000; ++i) {
    step.drafts = gate.Drafts(step.num_decoding);
    if (step.drafts != before) slow = kStages;
    before = step.drafts;
    step.round_trip = slow-- > 0 ? absl::Seconds(step.drafts ? 100 : 0.001)
                                 : absl::Milliseconds(step.drafts ? 10 : 20);
    step.sampled_tokens = step.drafts ? 2 : 1;
    gate.StepReturned(step);
    drafted += step.drafts ? 1 : 0;
  }
  EXPECT_GT(drafted, 0.9 * 2000);
}

TEST(SpeculationGateTest, AClockThatStandsStillHarmsNothing) {
  Bench bench;
  EXPECT_GT(bench.Count(5000, {0, 0, 0.5}), 4000);
}

}  // namespace
}  // namespace caravan
