#include "worker/load_meter.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(LoadMeterTest, CountsStepsRowsAndTime) {
  SimulatedClock clock;
  clock.Advance(absl::Seconds(100));
  LoadMeter meter(clock);
  clock.Advance(absl::Seconds(2));
  meter.BeginStep();
  clock.Advance(absl::Seconds(3));
  meter.EndStep(7);
  clock.Advance(absl::Seconds(5));
  meter.BeginStep();
  clock.Advance(absl::Milliseconds(500));
  meter.EndStep(1);
  const v1::WorkerLoad load = meter.Read();
  EXPECT_DOUBLE_EQ(load.busy_s(), 3.5);
  EXPECT_DOUBLE_EQ(load.total_s(), 10.5);
  EXPECT_EQ(load.steps(), 2u);
  EXPECT_EQ(load.rows(), 8u);
}

TEST(LoadMeterTest, AStepInWorkIsBusyTime) {
  SimulatedClock clock;
  LoadMeter meter(clock);
  meter.BeginStep();
  clock.Advance(absl::Seconds(60));
  EXPECT_DOUBLE_EQ(meter.Read().busy_s(), 60);
  EXPECT_EQ(meter.Read().steps(), 0u);
  clock.Advance(absl::Seconds(1));
  meter.EndStep(1);
  clock.Advance(absl::Seconds(1));
  EXPECT_DOUBLE_EQ(meter.Read().busy_s(), 61);
  EXPECT_DOUBLE_EQ(meter.Read().total_s(), 62);
}

TEST(LoadMeterTest, LoadsAddUp) {
  v1::WorkerLoad load;
  load.set_busy_s(1);
  load.set_total_s(2);
  load.set_steps(3);
  load.set_rows(4);
  v1::ExpertLoad& experts = *load.mutable_experts();
  experts.set_hits(5);
  experts.set_misses(6);
  experts.set_reads(7);
  experts.set_read_bytes(8);
  experts.set_evictions(9);
  experts.set_guesses_used(10);
  experts.set_guesses_wasted(11);
  experts.set_waited_s(12);
  experts.set_guesses(13);
  experts.set_guessable(14);
  experts.set_wasted_bytes(15);
  experts.set_failovers(16);
  v1::CardExpertLoad& on_card = *load.mutable_card_experts();
  on_card.set_hits(17);
  on_card.set_copies(18);
  on_card.set_on_cpu(19);
  on_card.set_promotions(20);
  on_card.set_copied_bytes(21);
  v1::WorkerLoad sum = load;
  AddLoad(load, sum);
  EXPECT_EQ(sum.busy_s(), 2);
  EXPECT_EQ(sum.total_s(), 4);
  EXPECT_EQ(sum.steps(), 6u);
  EXPECT_EQ(sum.rows(), 8u);
  EXPECT_EQ(sum.experts().hits(), 10u);
  EXPECT_EQ(sum.experts().misses(), 12u);
  EXPECT_EQ(sum.experts().reads(), 14u);
  EXPECT_EQ(sum.experts().read_bytes(), 16u);
  EXPECT_EQ(sum.experts().evictions(), 18u);
  EXPECT_EQ(sum.experts().guesses_used(), 20u);
  EXPECT_EQ(sum.experts().guesses_wasted(), 22u);
  EXPECT_EQ(sum.experts().waited_s(), 24);
  EXPECT_EQ(sum.experts().guesses(), 26u);
  EXPECT_EQ(sum.experts().guessable(), 28u);
  EXPECT_EQ(sum.experts().wasted_bytes(), 30u);
  EXPECT_EQ(sum.experts().failovers(), 32u);

  EXPECT_EQ(sum.card_experts().hits(), 34u);
  EXPECT_EQ(sum.card_experts().copies(), 36u);
  EXPECT_EQ(sum.card_experts().on_cpu(), 38u);
  EXPECT_EQ(sum.card_experts().promotions(), 40u);
  EXPECT_EQ(sum.card_experts().copied_bytes(), 42u);

  load.clear_experts();
  load.clear_card_experts();
  AddLoad(load, sum);
  EXPECT_EQ(sum.experts().hits(), 10u);
  EXPECT_EQ(sum.card_experts().hits(), 34u);
  v1::WorkerLoad resident = load;
  AddLoad(load, resident);
  EXPECT_FALSE(resident.has_experts());
  EXPECT_FALSE(resident.has_card_experts());
}

}  // namespace
}  // namespace caravan
