#include "coordinator/scheduler.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Scheduler::Options SmallOptions() {
  Scheduler::Options options;
  options.plan_version = 3;
  options.num_stages = 1;
  options.kv_blocks = 64;
  options.kv_block_tokens = 4;
  options.max_step_tokens = 16;
  options.prefill_chunk = 8;
  options.vocab_size = 97;
  return options;
}

/// A scheduler with its sequences, and workers that hold it to the protocol.
class Bench {
 public:
  explicit Bench(const Scheduler::Options& options)
      : scheduler_(options), workers_(WorkersFor(options)) {}

  Sequence* Add(const JobSpec& spec) {
    sequences_.push_back(std::make_unique<Sequence>(sequences_.size() + 1, spec));
    scheduler_.Enqueue(sequences_.back().get());
    return sequences_.back().get();
  }

  void Cancel(Sequence* sequence) {
    sequence->Cancel();
    scheduler_.Release(sequence);
  }

  /// The next step, answered; fails the test if none is due.
  v1::Step Next(bool admit = true) {
    auto step = scheduler_.NextStep(admit);
    EXPECT_TRUE(step.has_value());
    return step.has_value() ? workers_.Answer(*std::move(step)) : v1::Step();
  }

  bool NothingDue() { return !scheduler_.NextStep(true).has_value(); }

  void Home(const v1::Step& step) {
    workers_.MarkHome(step);
    ASSERT_TRUE(scheduler_.TakeIn(step).ok());
  }

  /// Steps until nothing is left to do.
  void Drain() {
    while (auto step = scheduler_.NextStep(true)) Home(workers_.Answer(*std::move(step)));
  }

  Scheduler& scheduler() { return scheduler_; }
  FakePipeline& workers() { return workers_; }

 private:
  static FakePipeline::Options WorkersFor(const Scheduler::Options& options) {
    FakePipeline::Options workers;
    workers.plan_version = options.plan_version;
    workers.num_stages = options.num_stages;
    workers.kv_blocks = options.kv_blocks;
    workers.kv_block_tokens = options.kv_block_tokens;
    workers.max_step_tokens = options.max_step_tokens;
    workers.model.vocab_size = options.vocab_size;
    return workers;
  }

  Scheduler scheduler_;
  FakePipeline workers_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

std::vector<int> Rows(const v1::Step& step) {
  std::vector<int> rows;
  for (const v1::SequenceSlice& slice : step.slices()) rows.push_back(slice.token_ids_size());
  return rows;
}

std::vector<uint64_t> Ids(const v1::Step& step) {
  std::vector<uint64_t> ids;
  for (const v1::SequenceSlice& slice : step.slices()) ids.push_back(slice.sequence_id());
  return ids;
}

TEST(SchedulerTest, CutsAPromptIntoChunks) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(19, 2));
  for (const int rows : {8, 8, 3, 1}) {
    const v1::Step step = bench.Next();
    EXPECT_THAT(Rows(step), ElementsAre(rows));
    EXPECT_EQ(step.slices(0).output(), rows == 8 ? v1::SLICE_OUTPUT_NONE : v1::SLICE_OUTPUT_SAMPLE);
    bench.Home(step);
  }
  EXPECT_THAT(Ids(bench.Next()), IsEmpty());
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

TEST(SchedulerTest, LeavesRowsToDecodingSequencesBeforeItFillsAChunk) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 8;
  Bench bench(options);
  bench.Add(ToyJob(2, 10));
  bench.Add(ToyJob(2, 10));
  const v1::Step step = bench.Next();
  bench.Add(ToyJob(20, 1));
  EXPECT_TRUE(bench.NothingDue());  // but the newcomer is first in line now
  bench.Home(step);
  EXPECT_THAT(Rows(bench.Next()), ElementsAre(6, 1, 1));
}

TEST(SchedulerTest, StarvesNobodyWhenDecodingFillsTheStep) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 4;
  Bench bench(options);
  for (int i = 0; i < 6; ++i) bench.Add(ToyJob(1, 24, i));
  for (int i = 0; i < 2; ++i) bench.Home(bench.Next());
  Sequence* late = bench.Add(ToyJob(6, 1));
  // Every other step reaches it at least, with one row at least.
  for (int i = 0; i < 12; ++i) bench.Home(bench.Next());
  EXPECT_EQ(late->state(), SequenceState::kFinished);
}

TEST(SchedulerTest, AdmitsInOrderAsFarAsBlocksGo) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 10;
  Bench bench(options);
  Sequence* first = bench.Add(ToyJob(4, 20));   // 6 blocks
  Sequence* second = bench.Add(ToyJob(8, 12));  // 5 blocks: does not fit beside it
  Sequence* third = bench.Add(ToyJob(1, 1));    // would fit, but stands behind
  const v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1));
  EXPECT_EQ(bench.scheduler().free_blocks(), 4);
  EXPECT_EQ(second->state(), SequenceState::kQueued);
  EXPECT_EQ(third->state(), SequenceState::kQueued);
  bench.Cancel(first);
  EXPECT_TRUE(bench.NothingDue());
  bench.Home(step);
  const v1::Step next = bench.Next();
  EXPECT_THAT(next.freed_sequence_ids(), ElementsAre(1));
  EXPECT_THAT(Ids(next), ElementsAre(2, 3));
  EXPECT_EQ(bench.scheduler().free_blocks(), 4);
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
  EXPECT_TRUE(scheduler.CheckFits(Sequence(1, ToyJob(10, 30))).ok());
  const absl::Status status = scheduler.CheckFits(Sequence(1, ToyJob(10, 31)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("41 tokens, that is 11 KV blocks of 4; the cluster has 10"));
}

TEST(SchedulerTest, SpreadsSequencesOverAsManyStepsAsStages) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 3;
  Bench bench(options);
  for (int i = 0; i < 7; ++i) bench.Add(ToyJob(1, 5, i));
  const v1::Step first = bench.Next();
  EXPECT_THAT(Ids(first), ElementsAre(1, 2, 3));
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(4, 5, 6));
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(7));
  EXPECT_TRUE(bench.NothingDue()) << "a fourth step for three stages";
  bench.Home(first);
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(1, 2, 3));
}

TEST(SchedulerTest, HoldsReadySequencesBackWhileEveryStageIsBusy) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  bench.Add(ToyJob(1, 5));
  const v1::Step first = bench.Next();
  bench.Add(ToyJob(1, 5));
  bench.Next();
  bench.Add(ToyJob(1, 5));
  bench.Add(ToyJob(1, 5));
  EXPECT_TRUE(bench.NothingDue());
  bench.Home(first);
  EXPECT_THAT(Ids(bench.Next()), ElementsAre(3, 4)) << "in line before sequence 1";
}

TEST(SchedulerTest, SendsFreesAloneWhenNothingElseIsDue) {
  Bench bench(SmallOptions());
  bench.Add(ToyJob(3, 1));
  bench.Home(bench.Next());
  EXPECT_FALSE(bench.scheduler().Idle());
  const v1::Step frees = bench.Next();
  EXPECT_THAT(frees.freed_sequence_ids(), ElementsAre(1));
  EXPECT_EQ(frees.slices_size(), 0);
  bench.Home(frees);
  EXPECT_TRUE(bench.NothingDue());
  EXPECT_TRUE(bench.scheduler().Idle());
  EXPECT_EQ(bench.scheduler().free_blocks(), 64);
}

TEST(SchedulerTest, FreesACancelledSequenceWhenItsSliceIsHome) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* sequence = bench.Add(ToyJob(4, 4));
  const v1::Step step = bench.Next();
  bench.Cancel(sequence);
  EXPECT_TRUE(bench.NothingDue());
  EXPECT_EQ(bench.scheduler().free_blocks(), 62);
  bench.Home(step);
  EXPECT_EQ(bench.scheduler().free_blocks(), 64);
  EXPECT_THAT(bench.Next().freed_sequence_ids(), ElementsAre(1));
}

TEST(SchedulerTest, FreesACancelledSequenceBetweenItsSlicesAtOnce) {
  Bench bench(SmallOptions());
  Sequence* sequence = bench.Add(ToyJob(4, 4));
  bench.Home(bench.Next());
  bench.Cancel(sequence);
  EXPECT_THAT(bench.Next().freed_sequence_ids(), ElementsAre(1));
}

TEST(SchedulerTest, DoesNotTellWorkersOfSequencesTheyNeverSaw) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 1;
  Bench bench(options);
  bench.Add(ToyJob(1, 1));
  Sequence* admitted = bench.Add(ToyJob(1, 1));
  const v1::Step step = bench.Next();
  EXPECT_EQ(admitted->state(), SequenceState::kPrefilling);
  Sequence* queued = bench.Add(ToyJob(1, 1));
  bench.Cancel(admitted);
  bench.Cancel(queued);
  bench.Home(step);
  bench.Drain();
  EXPECT_THAT(bench.workers().sequences_seen(), ElementsAre(1));
  EXPECT_EQ(bench.scheduler().free_blocks(), 64);
}

TEST(SchedulerTest, FailsAndFreesTheSequencesOfAFailedStep) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* failing = bench.Add(ToyJob(4, 4));
  Sequence* other = bench.Add(ToyJob(4, 4));
  v1::Step step = bench.Next();
  step.clear_results();
  step.mutable_error()->set_code(8);
  bench.workers().MarkHome(step);
  auto returned = bench.scheduler().TakeIn(step);
  ASSERT_TRUE(returned.ok());
  ASSERT_EQ(returned->size(), 1u);
  EXPECT_EQ(returned->front().sequence, failing);
  EXPECT_EQ(returned->front().result, nullptr);
  EXPECT_EQ(failing->state(), SequenceState::kFailed);
  const v1::Step next = bench.Next();
  EXPECT_THAT(next.freed_sequence_ids(), ElementsAre(1));
  EXPECT_THAT(Ids(next), ElementsAre(2));
  EXPECT_TRUE(other->running());
}

TEST(SchedulerTest, BoundsTheLogitsOfASlice) {
  Scheduler::Options options = SmallOptions();
  options.vocab_size = 129280;  // 505 KiB a row: 16 rows in 8 MiB
  options.prefill_chunk = 512;
  options.max_step_tokens = 512;
  Scheduler scheduler(options);
  JobSpec spec = ToyJob(40, 0);
  spec.prompt_logits = true;
  Sequence sequence(1, spec);
  scheduler.Enqueue(&sequence);
  EXPECT_THAT(Rows(*scheduler.NextStep(true)), ElementsAre(16));
}

TEST(SchedulerTest, TakesInTheOldestStepOnly) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  bench.Add(ToyJob(1, 4));
  bench.Add(ToyJob(1, 4));
  const v1::Step first = bench.Next();
  const v1::Step second = bench.Next();
  const absl::Status lost = bench.scheduler().TakeIn(second).status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(lost.message(), "step 2 came home where step 1 was due");
  bench.Home(first);
  EXPECT_EQ(bench.scheduler().TakeIn(first).status().message(),
            "step 1 came home where step 2 was due");
  bench.Home(second);
  EXPECT_EQ(bench.scheduler().TakeIn(second).status().message(),
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
    const absl::Status status = bench.scheduler().TakeIn(step).status();
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
  bad.mutable_results(0)->set_token_id(97);
  expect_refused(bad, "token id 97, outside the vocabulary of 97");
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
