#include "cli/offload_bounds.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

/// At 100 bytes a second.
constexpr double kRate = 100;

/// A visit of no bytes and no time.
ExpertVisit Touching(int64_t touched) {
  ExpertVisit visit;
  visit.touched = touched;
  return visit;
}

/// A step of two layers: 2 s waited and 1 s computed in the first visit, 1 s and 3 s in the second,
/// 5 s between visits.
StageRun OneStep() {
  StageRun stage;
  stage.busy = absl::Seconds(12);
  stage.visits = {
      {.touched = 6, .read_bytes = 200, .waited = absl::Seconds(2), .compute = absl::Seconds(1)},
      {.touched = 4, .read_bytes = 100, .waited = absl::Seconds(1), .compute = absl::Seconds(3)}};
  stage.num_layers = 2;
  stage.slots = 7;
  return stage;
}

TEST(OffloadBoundsTest, LayersInTurnOverlapReadsWithTheirVisitsOwnWorkOnly) {
  const OffloadBounds bounds =
      ComputeOffloadBounds({.stages = {OneStep()}, .expert_bytes = 50}, kRate);
  // 5 s between visits, 2 s of reads over 1 s of work, 3 s of work over 1 s of reads.
  EXPECT_EQ(bounds.in_turn, absl::Seconds(10));
  // Of ten experts seven may have been there.
  EXPECT_EQ(bounds.disk, absl::Seconds(1.5));
  EXPECT_EQ(bounds.compute, absl::Seconds(9));
  EXPECT_EQ(bounds.bulk(), absl::Seconds(9));
}

TEST(OffloadBoundsTest, MemoryHoldsItsSlotsFromEachStepToTheNext) {
  StageRun stage = OneStep();
  stage.visits.push_back(Touching(1));
  stage.visits.push_back(Touching(2));  // less than the slots
  stage.visits.push_back(Touching(20));
  stage.visits.push_back(Touching(30));
  const OffloadBounds bounds = ComputeOffloadBounds({.stages = {stage}, .expert_bytes = 50}, kRate);
  EXPECT_EQ(bounds.disk, absl::Seconds(0.5 * (3 + 0 + 43)));
  EXPECT_EQ(bounds.bulk(), bounds.disk);
}

TEST(OffloadBoundsTest, StagesOneAfterTheOtherAddUp) {
  const OffloadBounds bounds = ComputeOffloadBounds(
      {.stages = {OneStep(), OneStep()}, .stages_overlap = false, .expert_bytes = 50}, kRate);
  EXPECT_EQ(bounds.in_turn, absl::Seconds(20));
  EXPECT_EQ(bounds.disk, absl::Seconds(3));
  EXPECT_EQ(bounds.compute, absl::Seconds(18));
}

TEST(OffloadBoundsTest, StagesThatOverlapShareTheDisk) {
  StageRun reader = OneStep();
  reader.visits[0].read_bytes = 700;
  const OffloadBounds bounds = ComputeOffloadBounds(
      {.stages = {OneStep(), reader}, .stages_overlap = true, .expert_bytes = 50}, kRate);
  EXPECT_EQ(bounds.in_turn, absl::Seconds(15));  // of `reader`: 7 s of reads instead of 2
  EXPECT_EQ(bounds.disk, absl::Seconds(3));
  EXPECT_EQ(bounds.compute, absl::Seconds(9));

  const OffloadBounds faster_cores = ComputeOffloadBounds(
      {.stages = {reader, reader}, .stages_overlap = true, .expert_bytes = 50}, kRate);
  EXPECT_EQ(faster_cores.in_turn, absl::Seconds(16));  // 1600 bytes
}

TEST(OffloadBoundsTest, AStageWithoutExpertsOnlyComputes) {
  StageRun dense;
  dense.busy = absl::Seconds(4);
  const OffloadBounds bounds = ComputeOffloadBounds({.stages = {dense}, .expert_bytes = 50}, kRate);
  EXPECT_EQ(bounds.in_turn, absl::Seconds(4));
  EXPECT_EQ(bounds.disk, absl::ZeroDuration());
  EXPECT_EQ(bounds.compute, absl::Seconds(4));
}

}  // namespace
}  // namespace caravan
