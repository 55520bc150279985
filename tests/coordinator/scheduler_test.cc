#include "coordinator/scheduler.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/scheduler_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SchedulerTest, CutsAPromptIntoChunks) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(19, 2));
  for (const int rows : {8, 8, 3, 1}) {
    const v1::Step step = bench.Next();
    EXPECT_THAT(Rows(step), ElementsAre(rows));
    EXPECT_EQ(step.slices(0).output(), rows == 8 ? v1::SLICE_OUTPUT_NONE : v1::SLICE_OUTPUT_SAMPLE);
    bench.Home(step);
  }
  EXPECT_TRUE(bench.NothingDue());
  EXPECT_TRUE(bench.scheduler().Idle());
}

TEST(SchedulerTest, NumbersStepsFromOneAndNamesThePlan) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(1, 3));
  for (const uint64_t step_id : {1, 2, 3}) {
    const v1::Step step = bench.Next();
    EXPECT_EQ(step.step_id(), step_id);
    EXPECT_EQ(step.plan_version(), 3u);
    bench.Home(step);
  }
}

/// Steps that take every prompt whole, so that only blocks are short.
Scheduler::Options FewBlocks(int64_t kv_blocks) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = kv_blocks;
  options.max_step_tokens = 64;
  options.prefill_chunk = 64;
  return options;
}

JobSpec Bulk(JobSpec spec) {
  spec.priority = JobPriority::kBulk;
  return spec;
}

TEST(SchedulerTest, LeavesRowsToPromptsWhileOthersDecode) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 8;
  Bench bench(options);
  for (int i = 0; i < 8; ++i) bench.Add(ToyJob(1, 10, i));
  bench.Home(bench.Next());
  bench.Add(ToyJob(20, 1, 9));
  // Six of the eight rows are for those who decode, in turn.
  v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1, 2, 3, 4, 5, 6, 9));
  EXPECT_THAT(Rows(step), ElementsAre(1, 1, 1, 1, 1, 1, 2));
  bench.Home(step);
  step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(7, 8, 1, 2, 3, 4, 9));
  bench.Home(step);
}

TEST(SchedulerTest, AStreamWaitsForNoMoreThanAChunk) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(1, 30));
  bench.Home(bench.Next());
  for (int i = 1; i < 4; ++i) bench.Add(ToyJob(40, 1, i));
  // Every step takes it along, while three long prompts wait.
  for (int i = 0; i < 8; ++i) {
    const v1::Step step = bench.Next();
    EXPECT_EQ(step.slices(0).sequence_id(), 1u);
    bench.Home(step);
  }
}

TEST(SchedulerTest, PrefillsInteractivePromptsFirst) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 8;
  Bench bench(options);
  bench.Add(Bulk(ToyJob(20, 1)));
  bench.Home(bench.Next());
  bench.Add(ToyJob(12, 1, 1));
  v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(2));
  bench.Home(step);
  step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(2, 1));
  EXPECT_THAT(Rows(step), ElementsAre(4, 4));
  bench.Home(step);
}

TEST(SchedulerTest, SendsChunksOfAPromptBehindEachOther) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 3;
  Bench bench(options);
  Sequence* sequence = bench.Add(ToyJob(20, 3));
  std::vector<v1::Step> steps;
  for (const int rows : {8, 8, 4}) {
    steps.push_back(bench.Next());
    EXPECT_THAT(Rows(steps.back()), ElementsAre(rows));
  }
  EXPECT_TRUE(bench.NothingDue());
  for (const v1::Step& step : steps) bench.Home(step);
  EXPECT_EQ(sequence->state(), SequenceState::kDecoding);
  bench.Drain();
  EXPECT_EQ(sequence->state(), SequenceState::kFinished);
}

TEST(SchedulerTest, AdmitsWhatNeedsTheWholeCacheAndFindsItsBeginningThere) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 4;  // 16 tokens
  Bench bench(options);
  JobSpec spec = ToyJob(14, 2, 1);
  bench.Add(spec);
  bench.Drain();
  // One token in common: to copy its block would take a fifth one.
  const int32_t common = spec.prompt[0];
  spec = ToyJob(14, 2, 2);
  ASSERT_NE(spec.prompt[1], ToyJob(14, 2, 1).prompt[1]);
  spec.prompt[0] = common;
  const Sequence* const second = bench.Add(spec);
  bench.Drain();
  EXPECT_EQ(second->state(), SequenceState::kFinished);
}

TEST(SchedulerTest, SpreadsDecodingSequencesOverAsManyStepsAsStages) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 3;
  Bench bench(options);
  for (int i = 0; i < 7; ++i) bench.Add(ToyJob(1, 5, i));
  bench.Home(bench.Next());
  const v1::Step first = bench.Next();
  EXPECT_THAT(Ids(first), ElementsAre(1, 2, 3));
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(4, 5, 6));
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(7));
  EXPECT_TRUE(bench.NothingDue()) << "a fourth step for three stages";
  bench.Home(first);
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(1, 2, 3));
}

TEST(SchedulerTest, AdmitsByRankAsFarAsBlocksGo) {
  Bench bench(FewBlocks(10));
  Sequence* first = bench.Add(ToyJob(24, 1, 1));   // 6 blocks
  Sequence* second = bench.Add(ToyJob(16, 1, 2));  // 4 blocks, and one to grow for the first
  Sequence* third = bench.Add(ToyJob(1, 1, 3));    // would fit, but stands behind
  const v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1));
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 4);
  EXPECT_EQ(second->state(), SequenceState::kQueued);
  EXPECT_EQ(third->state(), SequenceState::kQueued);
  bench.Cancel(first);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 10) << "at once, though it is in flight";
  bench.Home(step);
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(2, 3));
}

TEST(SchedulerTest, NeedsNoRoomForBlocksThatAreShared) {
  Bench bench(FewBlocks(10));
  bench.Add(ToyJob(24, 8, 1));  // 6 blocks
  bench.Home(bench.Next());
  // 6 blocks too, of which 5 are there; the sixth is copied.
  Sequence* same = bench.Add(ToyJob(24, 8, 1));
  bench.Next();
  EXPECT_TRUE(same->running());
  EXPECT_EQ(same->reused_tokens(), 23);
}

TEST(SchedulerTest, AdmitsInteractiveJobsBeforeBulkJobsThatAreNotMuchOlder) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 1;
  Bench bench(options);
  Sequence* old_bulk = bench.Add(Bulk(ToyJob(1, 1, 1)));  // at second 1
  for (int i = 0; i < 59; ++i) bench.Cancel(bench.Add(ToyJob(1, 1)));
  Sequence* bulk = bench.Add(Bulk(ToyJob(1, 1, 2)));  // at second 61
  Sequence* interactive = bench.Add(ToyJob(1, 1, 3));
  std::vector<uint64_t> order;
  for (int i = 0; i < 3; ++i) {
    const v1::Step step = bench.Next();
    order.push_back(Ids(step).at(0));
    bench.Home(step);
  }
  EXPECT_THAT(order, ElementsAre(old_bulk->id(), interactive->id(), bulk->id()));
}

TEST(SchedulerTest, TheYoungestBulkSequenceGivesItsBlocksBackAndIsPrefilledAgain) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 12;
  options.max_step_tokens = 64;
  Bench bench(options);
  Sequence* interactive = bench.Add(ToyJob(4, 24, 1));  // 7 blocks at its end
  Sequence* bulk = bench.Add(Bulk(ToyJob(4, 16, 2)));   // 5 blocks
  Sequence* young = bench.Add(Bulk(ToyJob(4, 16, 3)));
  bench.Drain();
  EXPECT_EQ(interactive->run(), 1u);
  EXPECT_EQ(bulk->run(), 1u);
  EXPECT_GT(young->run(), 1u);
  EXPECT_EQ(bench.scheduler().counters().preemptions, static_cast<int64_t>(young->run()) - 1);
  EXPECT_EQ(young->generated_tokens(), 16);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 12);
}

TEST(SchedulerTest, AnInteractiveJobThatDoesNotFitHasBulkJobsGiveWay) {
  Bench bench(FewBlocks(8));
  Sequence* bulk = bench.Add(Bulk(ToyJob(20, 8, 1)));  // 5 blocks
  bench.Home(bench.Next());
  Sequence* interactive = bench.Add(ToyJob(20, 8, 2));
  const v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(2));
  EXPECT_EQ(bulk->state(), SequenceState::kQueued);
  bench.Home(step);
  bench.Drain();
  EXPECT_EQ(interactive->state(), SequenceState::kFinished);
  EXPECT_EQ(bulk->state(), SequenceState::kFinished);
}

TEST(SchedulerTest, ForgetsSlicesOfARunThatWasPreempted) {
  Scheduler::Options options = FewBlocks(8);
  options.num_stages = 2;
  Bench bench(options);
  Sequence* bulk = bench.Add(Bulk(ToyJob(20, 4, 1)));
  const v1::Step stale = bench.Next();
  Sequence* interactive = bench.Add(ToyJob(20, 1, 2));
  const v1::Step urgent = bench.Next();
  EXPECT_EQ(bulk->state(), SequenceState::kQueued);
  bench.Home(stale);
  EXPECT_EQ(bulk->state(), SequenceState::kQueued);
  EXPECT_EQ(bulk->generated_tokens(), 0);
  bench.Home(urgent);
  EXPECT_EQ(interactive->state(), SequenceState::kFinished);
  bench.Drain();
  EXPECT_EQ(bulk->state(), SequenceState::kFinished);
}

TEST(SchedulerTest, SharesTheBlocksOfACommonBeginning) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(14, 1));
  bench.Drain();
  // Three whole blocks are shared; of the fourth a copy is made.
  Sequence* longer = bench.Add(ToyJob(20, 1));
  const v1::Step step = bench.Next();
  EXPECT_EQ(step.slices(0).first_position(), 14u);
  ASSERT_EQ(step.block_copies_size(), 1);
  EXPECT_EQ(step.slices(0).kv_blocks(3), step.block_copies(0).to());
  bench.Home(step);
  EXPECT_EQ(longer->reused_tokens(), 14);
  EXPECT_EQ(bench.scheduler().counters().prefix_hit_tokens, 14);
}

TEST(SchedulerTest, ReadsNoPromptFromTheCacheWhoseEveryRowIsWanted) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(14, 1));
  bench.Drain();
  for (const bool logits : {true, false}) {
    JobSpec spec = ToyJob(14, 0);
    spec.prompt_logits = logits;
    spec.score_prompt = !logits;
    Sequence* sequence = bench.Add(spec);
    const v1::Step step = bench.Next();
    EXPECT_EQ(step.slices(0).first_position(), 0u);
    bench.Home(step);
    bench.Drain();
    EXPECT_EQ(sequence->state(), SequenceState::kFinished);
  }
}

TEST(SchedulerTest, LetsNobodyInWhileToldNotTo) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(1, 1));
  EXPECT_FALSE(bench.scheduler().NextStep(/*admit=*/false).has_value());
  EXPECT_TRUE(bench.scheduler().Idle());
  EXPECT_THAT(Ids(bench.Next(/*admit=*/true)), ElementsAre(1));
  EXPECT_FALSE(bench.scheduler().Idle());
}

TEST(SchedulerTest, RefusesWhatCanNeverFit) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 10;
  Scheduler scheduler(options);
  EXPECT_TRUE(scheduler.CheckFits(Sequence(1, ToyJob(10, 30), {})).ok());
  const absl::Status status = scheduler.CheckFits(Sequence(1, ToyJob(10, 31), {}));
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("41 tokens, that is 11 KV blocks of 4; the cluster has 10"));
}

TEST(SchedulerTest, QueuesTheSequencesOfAFailedStepAgain) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* failing = bench.Add(ToyJob(4, 4));
  v1::Step step = bench.Next();
  Sequence* other = bench.Add(ToyJob(4, 4));
  step.clear_results();
  step.mutable_error()->set_code(8);
  bench.workers().MarkHome();
  auto returned = bench.scheduler().TakeIn(step, absl::ZeroDuration());
  ASSERT_TRUE(returned.ok());
  ASSERT_EQ(returned->size(), 1u);
  EXPECT_EQ(returned->front().sequence, failing);
  EXPECT_EQ(returned->front().result, nullptr);
  EXPECT_EQ(failing->state(), SequenceState::kQueued);
  bench.Drain();
  EXPECT_EQ(failing->state(), SequenceState::kFinished);
  EXPECT_EQ(other->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 64);
}

TEST(SchedulerTest, ReleasesWhoRunsAndWhoWaits) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 4;
  Bench bench(options);
  Sequence* const running = bench.Add(ToyJob(8, 4));
  bench.Home(bench.Next());
  Sequence* const waiting = bench.Add(ToyJob(8, 4, 1));
  EXPECT_THAT(bench.scheduler().Release(), ElementsAre(running));
  EXPECT_EQ(running->state(), SequenceState::kQueued);
  EXPECT_EQ(running->generated_tokens(), 1);
  EXPECT_EQ(waiting->state(), SequenceState::kQueued);
  EXPECT_EQ(bench.scheduler().num_queued(), 0);
  EXPECT_EQ(bench.scheduler().num_running(), 0);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 4);
}

TEST(SchedulerTest, BoundsTheLogitsOfASlice) {
  Scheduler::Options options = SmallOptions();
  options.vocab_size = 129280;  // 505 KiB a row: 16 rows in 8 MiB
  options.prefill_chunk = 512;
  options.max_step_tokens = 512;
  Scheduler scheduler(options);
  JobSpec spec = ToyJob(40, 0);
  spec.prompt_logits = true;
  Sequence sequence(1, spec, {});
  scheduler.Enqueue(&sequence);
  EXPECT_THAT(Rows(*scheduler.NextStep(true)), ElementsAre(16));
}

TEST(SchedulerTest, TakesInTheOldestStepOnly) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  bench.Add(ToyJob(1, 4));
  const v1::Step first = bench.Next();
  bench.Add(ToyJob(1, 4, 1));
  const v1::Step second = bench.Next();
  const absl::Status lost = bench.scheduler().TakeIn(second, absl::ZeroDuration()).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(lost.message(), "step 2 came home where step 1 was due");
  bench.Home(first);
  EXPECT_EQ(bench.scheduler().TakeIn(first, absl::ZeroDuration()).status().message(),
            "step 1 came home where step 2 was due");
  bench.Home(second);
  EXPECT_EQ(bench.scheduler().TakeIn(second, absl::ZeroDuration()).status().message(),
            "step 2 came home where none was due");
}

TEST(SchedulerTest, RefusesResultsThatDoNotAnswerTheSlices) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(3, 4));
  JobSpec scoring = ToyJob(3, 0);
  scoring.prompt_logits = true;
  bench.Add(scoring);
  const v1::Step good = bench.Next();
  const auto expect_refused = [&](const v1::Step& step, const std::string& text) {
    const absl::Status status = bench.scheduler().TakeIn(step, absl::ZeroDuration()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  v1::Step bad = good;
  bad.mutable_results()->RemoveLast();
  expect_refused(bad, "step 1 came home with 1 results for 2 slices");
  bad = good;
  bad.mutable_results()->SwapElements(0, 1);
  expect_refused(bad, "a result of sequence 2 for a slice of sequence 1");
  bad = good;
  bad.mutable_results(0)->mutable_sampled(0)->set_token_id(97);
  expect_refused(bad, "token id 97, outside the vocabulary of 97");
  bad = good;
  bad.mutable_results(0)->clear_sampled();
  expect_refused(bad, "0 sampled and 0 scored tokens instead of 1 and 0");
  bad = good;
  bad.mutable_results(1)->mutable_logits()->pop_back();
  expect_refused(bad, "1163 bytes of logits instead of 1164");
  bad = good;
  bad.mutable_results(0)->set_logits("abcd");
  expect_refused(bad, "4 bytes of logits instead of 0");
  bench.Home(good);
}

}  // namespace
}  // namespace caravan
