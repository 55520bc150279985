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
  v1::WorkerLoad sum = load;
  AddLoad(load, sum);
  EXPECT_EQ(sum.busy_s(), 2);
  EXPECT_EQ(sum.total_s(), 4);
  EXPECT_EQ(sum.steps(), 6u);
  EXPECT_EQ(sum.rows(), 8u);
}

}  // namespace
}  // namespace caravan
