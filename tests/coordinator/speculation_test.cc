// Drafts on their way through scheduler and driver: replies are what they are without, a step gives
// more tokens, and nobody suffers from it.

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/scheduler_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Drafts = FakePipeline::Drafts;

TEST(SpeculationTest, RightDraftsGiveTwoTokensAStep) {
  Bench bench(SmallOptions(), Drafts::kRight);
  Sequence* sequence = bench.Add(ToyJob(5, 9));
  v1::Step step = bench.Next();
  EXPECT_THAT(Rows(step), ElementsAre(5));
  bench.Home(step);
  for (const int tokens_before : {1, 3, 5, 7}) {
    EXPECT_EQ(sequence->generated_tokens(), tokens_before);
    step = bench.Next();
    EXPECT_THAT(Rows(step), ElementsAre(2));
    EXPECT_EQ(step.slices(0).num_draft_tokens(), 1u);
    bench.Home(step);
  }
  EXPECT_EQ(sequence->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().counters().draft_tokens, 4);
  EXPECT_EQ(bench.scheduler().counters().draft_accepted_tokens, 4);
  EXPECT_EQ(bench.scheduler().counters().rows, 5 + 4 * 2);
}

TEST(SpeculationTest, WrongDraftsGiveOneTokenAStep) {
  Bench bench(SmallOptions(), Drafts::kWrong);
  Sequence* sequence = bench.Add(ToyJob(5, 9));
  bench.Drain();
  EXPECT_EQ(sequence->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().counters().steps, 9);
  // For the last token none is carried: it could not be followed by another.
  EXPECT_EQ(bench.scheduler().counters().draft_tokens, 7);
  EXPECT_EQ(bench.scheduler().counters().draft_accepted_tokens, 0);
}

TEST(SpeculationTest, TheDraftingLayerMissesNoPosition) {
  for (const Drafts drafts : {Drafts::kRight, Drafts::kWrong, Drafts::kMixed}) {
    Scheduler::Options options = SmallOptions();
    options.num_stages = 3;  // chunks of a prompt behind each other
    Bench bench(options, drafts, 2);
    for (int i = 0; i < 4; ++i) bench.Add(ToyJob(19 + i, 10, i % 3));
    bench.Drain();
    EXPECT_GE(bench.workers().drafting_slices(), 16);
    EXPECT_EQ(bench.workers().draft_gaps(), 0);
  }
}

TEST(SpeculationTest, WhatIsVerifiedOnlyAsksForNoDrafts) {
  Bench bench(SmallOptions(), Drafts::kRight);
  JobSpec spec = ToyJob(5, 0);
  spec.prompt_logits = true;
  bench.Add(spec);
  const v1::Step step = bench.Next();
  EXPECT_FALSE(step.slices(0).draft());
  bench.Home(step);
}

TEST(SpeculationTest, NobodyGivesWayForDrafts) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 5;
  Bench bench(options, Drafts::kRight);
  // Two blocks each, full with the first token of the reply. One is free.
  Sequence* first = bench.Add(ToyJob(7, 3, 1));
  Sequence* second = bench.Add(ToyJob(7, 9, 2));
  bench.Home(bench.Next());
  const v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1, 2));
  EXPECT_THAT(Rows(step), ElementsAre(2, 1));
  EXPECT_TRUE(step.slices(1).draft()) << "for the next step";
  bench.Home(step);
  EXPECT_EQ(first->state(), SequenceState::kFinished);
  bench.Drain();
  EXPECT_EQ(second->state(), SequenceState::kFinished);
  EXPECT_EQ(second->generated_tokens(), 9);
  EXPECT_EQ(bench.scheduler().counters().preemptions, 0);
}

TEST(SpeculationTest, DraftsTakeTheRowsThatAreLeft) {
  Scheduler::Options options = SmallOptions();
  options.max_step_tokens = 8;
  Bench bench(options, Drafts::kRight, 2);
  for (int i = 0; i < 4; ++i) bench.Add(ToyJob(1, 20, i));
  bench.Home(bench.Next());
  // Each its own first; then four rows for drafts, in turn.
  v1::Step step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(Rows(step), ElementsAre(3, 3, 1, 1));
  bench.Home(step);
  bench.Add(ToyJob(20, 1, 9));
  // Two rows are kept for the prompt.
  step = bench.Next();
  EXPECT_THAT(Ids(step), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(Rows(step), ElementsAre(3, 1, 1, 1, 2));
  bench.Home(step);
}

TEST(SpeculationTest, APreemptedSequenceGoesOnWithoutItsDrafts) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 12;
  options.max_step_tokens = 64;
  Bench bench(options, Drafts::kMixed, 3);
  std::vector<Sequence*> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(bench.Add(ToyJob(4, 24, i)));  // 7 blocks each
  bench.Drain();
  EXPECT_GT(bench.scheduler().counters().preemptions, 0);
  EXPECT_EQ(bench.workers().draft_gaps(), 0);
  for (const Sequence* sequence : sequences) EXPECT_EQ(sequence->generated_tokens(), 24);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 12);
}

/// Steps that take so long with a draft, and without; how many of `steps` decoding ones drafted.
int CountDrafting(Bench& bench, int steps, double with_ms, double without_ms) {
  int drafting = 0;
  for (int i = 0; i < steps; ++i) {
    const v1::Step step = bench.Next();
    const bool drafts = step.slices(0).draft();
    drafting += drafts ? 1 : 0;
    if (!drafts) {
      EXPECT_THAT(Rows(step), ElementsAre(1));
    }
    bench.Home(step, absl::Milliseconds(drafts ? with_ms : without_ms));
  }
  return drafting;
}

TEST(SpeculationTest, StopsDraftingWhereItDoesNotPay) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 2000;
  Bench bench(options, Drafts::kWrong);
  bench.Add(ToyJob(4, 4000));
  bench.Home(bench.Next());
  EXPECT_TRUE(bench.scheduler().speculating());
  EXPECT_LT(CountDrafting(bench, 1000, 1.3, 1), 200);
  EXPECT_FALSE(bench.scheduler().speculating());
  // Prompts are run through the drafting layer all the same.
  bench.Add(ToyJob(4, 1, 5));
  const v1::Step step = bench.Next();
  ASSERT_THAT(Ids(step), ElementsAre(1, 2));
  EXPECT_TRUE(step.slices(1).draft());
  bench.Home(step);
}

TEST(SpeculationTest, GoesOnDraftingWhereItPays) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 2000;
  Bench bench(options, Drafts::kRight);
  bench.Add(ToyJob(4, 4000));
  bench.Home(bench.Next());
  EXPECT_GT(CountDrafting(bench, 1000, 1.3, 1), 900);
}

TEST(SpeculationTest, RefusesResultsThatDoNotAnswerTheDrafts) {
  Bench bench(SmallOptions(), Drafts::kRight);
  bench.Add(ToyJob(3, 9));
  bench.Home(bench.Next());
  const v1::Step good = bench.Next();
  ASSERT_EQ(good.results(0).sampled_size(), 2);
  const auto expect_refused = [&](const v1::Step& step, const std::string& text) {
    const absl::Status status = bench.scheduler().TakeIn(step, absl::ZeroDuration()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  v1::Step bad = good;
  *bad.mutable_results(0)->add_sampled() = bad.results(0).sampled(1);
  expect_refused(bad, "3 sampled and 0 scored tokens instead of 1 to 2 and 0");
  bad = good;
  bad.mutable_results(0)->clear_sampled();
  expect_refused(bad, "0 sampled and 0 scored tokens instead of 1 to 2 and 0");
  bad = good;
  const uint32_t draft = good.slices(0).token_ids(1);
  bad.mutable_results(0)->mutable_sampled(0)->set_token_id((draft + 1) % 97);
  expect_refused(bad, "for an accepted draft of " + std::to_string(draft));
  bad = good;
  bad.mutable_results(0)->set_draft_token_ids(0, 97);
  expect_refused(bad, "token id 97, outside the vocabulary of 97");
  bench.Home(good);

  Bench without(SmallOptions());
  without.Add(ToyJob(3, 9));
  v1::Step unasked = without.Next();
  unasked.mutable_results(0)->add_draft_token_ids(5);
  EXPECT_THAT(std::string(without.scheduler().TakeIn(unasked, {}).status().message()),
              HasSubstr("drafts that nobody asked for"));
}

FakePipeline::Options DraftingStages(Drafts drafts, int num_drafts, int num_stages = 2) {
  FakePipeline::Options options = Stages(num_stages);
  options.drafts = drafts;
  options.num_drafts = num_drafts;
  return options;
}

TEST(SpeculationTest, AStopTokenEndsTheReplyInTheMiddleOfARun) {
  for (int stop_at = 0; stop_at < 9; ++stop_at) {
    FakePipeline workers(DraftingStages(Drafts::kRight, 3));
    PipelineDriver driver(SmallDriver());
    driver.Attach(workers.Connect());
    FakePipeline::Player player(&workers, &driver);
    JobSpec spec = ToyJob(5, 12);
    spec.stop_token_ids = {kModel.Reply(spec)[static_cast<size_t>(stop_at)]};
    const std::vector<int32_t> expected = kModel.Reply(spec);
    const Outcome outcome = ReadToEnd(MustSubmit(&driver, spec).get());
    EXPECT_EQ(outcome.reason, v1::FINISH_REASON_STOP);
    EXPECT_EQ(outcome.token_ids, expected);
    EXPECT_EQ(driver.stats().generated_tokens, static_cast<int64_t>(expected.size()));

    // The next turn finds what is true in the cache, and nothing else: tokens would differ.
    JobSpec next = ToyJob(5, 12);
    next.prompt.insert(next.prompt.end(), expected.begin(), expected.end());
    next.prompt.push_back(50);
    const Outcome second = ReadToEnd(MustSubmit(&driver, next).get());
    EXPECT_EQ(second.token_ids, kModel.Reply(next));
    EXPECT_GE(second.cached_prompt_tokens, 5 + static_cast<int64_t>(expected.size()) - 1);
  }
}

TEST(SpeculationTest, ARepliesLengthIsThatWithoutDrafts) {
  FakePipeline workers(DraftingStages(Drafts::kRight, 3));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  for (int length = 1; length < 12; ++length) {
    const JobSpec spec = ToyJob(64 - 12, length);  // as long as the context allows
    const Outcome outcome = ReadToEnd(MustSubmit(&driver, spec).get());
    EXPECT_EQ(outcome.token_ids, kModel.Reply(spec));
    EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
  }
  EXPECT_EQ(driver.stats().draft_tokens, driver.stats().draft_accepted_tokens);
  EXPECT_GT(driver.stats().draft_tokens, 30);
  EXPECT_TRUE(driver.stats().speculating);
}

TEST(SpeculationTest, EachTokenOfARunHasItsLogProbability) {
  FakePipeline workers(DraftingStages(Drafts::kRight, 2, 1));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  const JobSpec spec = ToyJob(3, 9);
  auto handle = MustSubmit(&driver, spec);
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  ASSERT_EQ(handle->Next()->tokens.size(), 1u);
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  const auto update = handle->Next();
  ASSERT_TRUE(update.ok());
  ASSERT_EQ(update->tokens.size(), 3u);
  std::vector<int32_t> known = spec.prompt;
  known.push_back(kModel.Next(known, {}).token_id);
  for (const ScoredToken& token : update->tokens) {
    EXPECT_EQ(token, kModel.Next(known, {}));
    known.push_back(token.token_id);
  }
  handle->Cancel();
  Drain(&driver, &workers);
}

TEST(SpeculationTest, PenaltiesSeeNoDrafts) {
  FakePipeline workers(DraftingStages(Drafts::kMixed, 2));  // holds histories to that
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  JobSpec spec = ToyJob(5, 20);
  spec.sampling.set_presence_penalty(1);
  EXPECT_EQ(ReadToEnd(MustSubmit(&driver, spec).get()).token_ids, kModel.Reply(spec));
}

TEST(SpeculationTest, GoesOnBehindAReplyThatAnEarlierLifeBegan) {
  FakePipeline workers(DraftingStages(Drafts::kMixed, 2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const JobSpec whole = ToyJob(9, 12);
  const std::vector<int32_t> reply = kModel.Reply(whole);
  for (ptrdiff_t known = 1; known < 12; ++known) {
    JobSpec rest = whole;
    rest.reply.assign(reply.begin(), reply.begin() + known);
    EXPECT_THAT(ReadToEnd(MustSubmit(&driver, rest).get()).token_ids,
                testing::ElementsAreArray(reply.begin() + known, reply.end()));
  }
}

}  // namespace
}  // namespace caravan
