// Pipelines that come, go and break, and what becomes of the jobs then.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bounded_queue.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PipelineDriverPlanTest, AHandleMayOutliveTheDriver) {
  std::unique_ptr<JobHandle> handle;
  {
    FakePipeline workers;
    PipelineDriver driver(SmallDriver());
    driver.Attach(workers.Connect());
    handle = MustSubmit(&driver, ToyJob(3, 10));
    workers.Take();
  }
  handle->Cancel();
  EXPECT_EQ(handle->Next().status(), absl::UnavailableError("the coordinator is shutting down"));
}

TEST(PipelineDriverPlanTest, ShutdownEndsAllJobsAndRefusesNewOnes) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  auto queued = MustSubmit(&driver, ToyJob(3, 10));
  driver.Shutdown();
  driver.Attach(workers.Connect());
  EXPECT_EQ(queued->Next().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(driver.Submit(ToyJob(3, 10)).status().code(), absl::StatusCode::kUnavailable);
}

TEST(PipelineDriverPlanTest, RunningAndQueuedJobsGoOnOverTheNextPipeline) {
  FakePipeline first(Stages(1, 1));
  FakePipeline second(Stages(2, 2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  const JobSpec running_spec = ToyJob(8, 12);
  const JobSpec queued_spec = ToyJob(7, 9);
  auto running = MustSubmit(&driver, running_spec);
  ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  driver.PauseAdmission();
  auto queued = MustSubmit(&driver, queued_spec);
  const v1::Step lost = first.Take();

  const absl::Status why = absl::UnavailableError("worker b is gone");
  driver.Detach(why);
  driver.Detach(why);
  first.WaitUntilClosed();
  ASSERT_EQ(driver.List().size(), 2u);
  for (const v1::JobSummary& job : driver.List()) EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(driver.List()[0].completion_tokens(), 1u);
  EXPECT_EQ(driver.stats().interruptions, 1);
  EXPECT_EQ(first.Deliver(&driver, lost).code(), absl::StatusCode::kAborted);

  driver.Attach(second.Connect());
  driver.ResumeAdmission();
  EXPECT_EQ(driver.Receive(lost).code(), absl::StatusCode::kAborted) << "another plan's step";
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(running.get()).token_ids, kModel.Reply(running_spec));
  EXPECT_EQ(ReadToEnd(queued.get()).token_ids, kModel.Reply(queued_spec));
}

TEST(PipelineDriverPlanTest, WhatAPromptYieldsComesOnceWhereItsPipelineWentInItsMidst) {
  FakePipeline first(Stages(1, 1));
  FakePipeline::Options other_chunks = Stages(1, 2);
  other_chunks.max_step_tokens = 7;
  FakePipeline second(other_chunks);
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  JobSpec logits_spec = ToyJob(21, 0);
  logits_spec.prompt_logits = true;
  JobSpec scores_spec = ToyJob(22, 3, 1);
  scores_spec.score_prompt = true;
  auto logits = MustSubmit(&driver, logits_spec);
  ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());  // 8 rows
  auto scores = MustSubmit(&driver, scores_spec);
  ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  driver.Detach(absl::UnavailableError("worker b is gone"));
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(logits.get()).logits, kModel.PromptLogits(logits_spec));
  const Outcome scored = ReadToEnd(scores.get());
  EXPECT_EQ(scored.prompt_scores, kModel.PromptScores(scores_spec));
  EXPECT_EQ(scored.token_ids, kModel.Reply(scores_spec));
}

/// Of plans 1 and 2, with one archive.
struct ArchivedPipelines {
  explicit ArchivedPipelines(int num_stages)
      : first(Options(num_stages, 1)), second(Options(num_stages, 2)) {}

  FakeArchive archive;
  FakePipeline first;
  FakePipeline second;

 private:
  FakePipeline::Options Options(int num_stages, uint64_t plan_version) {
    FakePipeline::Options options = Stages(num_stages, plan_version);
    options.archive = &archive;
    return options;
  }
};

TEST(PipelineDriverPlanTest, WhatIsArchivedIsNotComputedAgainOverTheNextPipeline) {
  ArchivedPipelines pipelines(1);
  FakeArchive& archive = pipelines.archive;
  FakePipeline& first = pipelines.first;
  FakePipeline& second = pipelines.second;
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  const JobSpec spec = ToyJob(21, 20);
  auto job = MustSubmit(&driver, spec);
  for (int i = 0; i < 3 + 8; ++i) ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  // The step on its way keeps the last block that is full: of prompt and 9 tokens, but for the
  // newest.
  first.Take();
  EXPECT_EQ(archive.blocks.size(), 7u);
  driver.Detach(absl::UnavailableError("worker b is gone"));
  driver.Attach(second.Connect());
  const v1::Step step = second.Take();
  EXPECT_EQ(step.restored_blocks_size(), 7);
  EXPECT_EQ(step.slices(0).first_position(), 28u);
  ASSERT_TRUE(second.Deliver(&driver, step).ok());
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(job.get()).token_ids, kModel.Reply(spec));
  // Others find it among the blocks.
  const Outcome alike = ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_EQ(alike.token_ids, kModel.Reply(spec));
  EXPECT_EQ(alike.cached_prompt_tokens, 20);
  EXPECT_EQ(archive.restored, 7);
}

TEST(PipelineDriverPlanTest, WhatAFullDiskHasNoRoomForIsNotLookedFor) {
  ArchivedPipelines pipelines(1);
  FakePipeline& first = pipelines.first;
  FakePipeline& second = pipelines.second;
  PipelineDriver driver(SmallDriver());
  driver.SetArchiveCapacity(1, 2);  // there is no such plan
  driver.Attach(first.Connect());
  const JobSpec spec = ToyJob(21, 20);
  {
    FakePipeline::Player player(&first, &driver);
    EXPECT_EQ(ReadToEnd(MustSubmit(&driver, spec).get()).token_ids, kModel.Reply(spec));
  }
  driver.Detach(absl::UnavailableError("worker b is gone"));
  driver.Attach(second.Connect());
  driver.SetArchiveCapacity(1, 1);  // of the plan that is over
  // Of the sequence the last blocks are kept longest, and nothing is found without the first.
  driver.SetArchiveCapacity(2, 2);
  auto job = MustSubmit(&driver, spec);
  const v1::Step step = second.Take();
  EXPECT_EQ(step.restored_blocks_size(), 0);
  ASSERT_TRUE(second.Deliver(&driver, step).ok());
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(job.get()).token_ids, kModel.Reply(spec));
  EXPECT_EQ(pipelines.archive.restored, 0);
}

/// A plan that has run dry, and for which other.
using Quiet = std::pair<uint64_t, uint64_t>;

/// A SmallDriver's, whose plans that have run dry are told to `quiet`.
PipelineDriver::Options TellingWhenQuiet(BoundedQueue<Quiet>* quiet) {
  PipelineDriver::Options options = SmallDriver();
  options.on_quiet = [quiet](uint64_t plan_version, uint64_t next_version) {
    quiet->Push({plan_version, next_version});
  };
  return options;
}

TEST(PipelineDriverPlanTest, APipelineThatRunsDryLeavesAllFullBlocksInTheArchive) {
  ArchivedPipelines pipelines(1);
  FakePipeline& first = pipelines.first;
  FakePipeline& second = pipelines.second;
  BoundedQueue<Quiet> quiet{2};
  PipelineDriver driver(TellingWhenQuiet(&quiet));
  driver.Attach(first.Connect());
  const JobSpec spec = ToyJob(21, 20);
  auto job = MustSubmit(&driver, spec);
  for (int i = 0; i < 3 + 6; ++i) ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  const v1::Step under_way = first.Take();
  driver.Quiesce(/*plan_version=*/9, 2);  // another one
  driver.Quiesce(1, 2);
  ASSERT_TRUE(first.Deliver(&driver, under_way).ok());
  // What that step filled is in no archive yet, and no slice brings it there any more.
  const v1::Step last = first.Take();
  EXPECT_EQ(last.slices_size(), 0);
  EXPECT_EQ(last.kept_blocks_size(), 1);
  EXPECT_EQ(quiet.PopWithTimeout(absl::ZeroDuration()), std::nullopt);
  ASSERT_TRUE(first.Deliver(&driver, last).ok());
  EXPECT_EQ(quiet.Pop(), Quiet(1, 2));
  EXPECT_EQ(pipelines.archive.blocks.size(), 7u);
  driver.Detach(absl::AbortedError("plan 2 takes its place"));
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(job.get()).token_ids, kModel.Reply(spec));
  EXPECT_EQ(pipelines.archive.restored, 7);
}

TEST(PipelineDriverPlanTest, APipelineThatHasRunDryMayGoOn) {
  BoundedQueue<Quiet> quiet{2};
  PipelineDriver driver(TellingWhenQuiet(&quiet));
  FakePipeline pipeline;
  driver.Attach(pipeline.Connect());
  driver.Quiesce(1, 2);
  EXPECT_EQ(quiet.Pop(), Quiet(1, 2));
  const JobSpec spec = ToyJob(5, 3);
  auto job = MustSubmit(&driver, spec);
  FakePipeline::Player player(&pipeline, &driver);
  EXPECT_TRUE(job->Next(absl::ZeroDuration())->empty());
  driver.GoOn();
  EXPECT_EQ(ReadToEnd(job.get()).token_ids, kModel.Reply(spec));
  driver.Quiesce(1, 3);
  EXPECT_EQ(quiet.Pop(), Quiet(1, 3));
  driver.Quiesce(1, 3);
  EXPECT_EQ(quiet.PopWithTimeout(absl::ZeroDuration()), std::nullopt) << "it was told";
  driver.Quiesce(1, 4);
  EXPECT_EQ(quiet.Pop(), Quiet(1, 4)) << "for another one it was not";
}

TEST(PipelineDriverPlanTest, AnArchiveThatLacksWhatItHadCostsAStepAndNoJob) {
  ArchivedPipelines pipelines(2);
  FakeArchive& archive = pipelines.archive;
  FakePipeline& first = pipelines.first;
  FakePipeline& second = pipelines.second;
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  std::vector<JobSpec> specs;
  for (int i = 0; i < 8; ++i) specs.push_back(ToyJob(12, 6, i));
  {
    FakePipeline::Player player(&first, &driver);
    for (const JobSpec& spec : specs) {
      EXPECT_EQ(ReadToEnd(MustSubmit(&driver, spec).get()).token_ids, kModel.Reply(spec));
    }
  }
  EXPECT_GE(archive.blocks.size(), specs.size() * 4);
  driver.Detach(absl::UnavailableError("worker b is gone"));
  archive.loses_all = true;
  std::vector<std::unique_ptr<JobHandle>> jobs;
  for (const JobSpec& spec : specs) jobs.push_back(MustSubmit(&driver, spec));
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  for (size_t i = 0; i < jobs.size(); ++i) {
    EXPECT_EQ(ReadToEnd(jobs[i].get()).token_ids, kModel.Reply(specs[i]));
  }
  EXPECT_EQ(archive.restored, 0);
}

TEST(PipelineDriverPlanTest, WhatIsScoredIsArchivedForWhoIsNot) {
  ArchivedPipelines pipelines(1);
  FakeArchive& archive = pipelines.archive;
  FakePipeline& first = pipelines.first;
  FakePipeline& second = pipelines.second;
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  JobSpec spec = ToyJob(21, 5);
  spec.score_prompt = true;
  {
    FakePipeline::Player player(&first, &driver);
    EXPECT_EQ(ReadToEnd(MustSubmit(&driver, spec).get()).prompt_scores, kModel.PromptScores(spec));
  }
  driver.Detach(absl::UnavailableError("worker b is gone"));
  driver.Attach(second.Connect());
  spec.score_prompt = false;
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(MustSubmit(&driver, spec).get()).cached_prompt_tokens, 20);
  EXPECT_EQ(archive.restored, 5);
}

TEST(PipelineDriverPlanTest, AJobThatLosesEveryPipelineGivesUp) {
  PipelineDriver driver(SmallDriver());
  const JobSpec spec = ToyJob(3, 9);
  auto job = MustSubmit(&driver, spec);
  const absl::Status why = absl::UnavailableError("worker b is gone");
  std::vector<std::unique_ptr<FakePipeline>> pipelines;
  const auto lose_one = [&](bool yields) {
    pipelines.push_back(std::make_unique<FakePipeline>(Stages(1, pipelines.size() + 1)));
    driver.Attach(pipelines.back()->Connect());
    const v1::Step step = pipelines.back()->Take();
    if (yields) {
      ASSERT_TRUE(pipelines.back()->Deliver(&driver, step).ok());
    }
    driver.Detach(why);
  };
  for (int i = 1; i < kMostInterruptions; ++i) lose_one(false);
  lose_one(true);  // A token between, and it may be patient again.
  EXPECT_EQ(job->Next()->tokens.size(), 1u);
  for (int i = 2; i < kMostInterruptions; ++i) lose_one(false);
  EXPECT_EQ(driver.List().size(), 1u);
  lose_one(false);
  const absl::Status lost = job->Next().status();
  EXPECT_EQ(lost.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lost.message()), AllOf(HasSubstr("5 times"), HasSubstr("worker b")));
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverPlanTest, AJobOutlivesAnyNumberOfPlansThatMakeWayForOthers) {
  PipelineDriver driver(SmallDriver());
  const JobSpec spec = ToyJob(3, 9);
  auto job = MustSubmit(&driver, spec);
  std::vector<std::unique_ptr<FakePipeline>> pipelines;
  for (int i = 0; i < 3 * kMostInterruptions; ++i) {
    pipelines.push_back(std::make_unique<FakePipeline>(Stages(1, pipelines.size() + 1)));
    driver.Attach(pipelines.back()->Connect());
    pipelines.back()->Take();
    driver.Detach(absl::AbortedError("the pipeline is being planned anew"));
  }
  EXPECT_EQ(driver.stats().interruptions, 3 * kMostInterruptions);
  FakePipeline last(Stages(1, 100));
  driver.Attach(last.Connect());
  FakePipeline::Player player(&last, &driver);
  EXPECT_EQ(ReadToEnd(job.get()).token_ids, kModel.Reply(spec));
}

TEST(PipelineDriverPlanTest, QueuedJobsGiveUpWhenNoPipelineComes) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallDriver();
  options.clock = &clock;
  PipelineDriver driver(options);
  driver.SetWaitingReason("waiting for 1 more worker");
  clock.Advance(absl::Seconds(100));
  auto first = MustSubmit(&driver, ToyJob(3, 3));
  clock.Advance(absl::Seconds(30));
  auto second = MustSubmit(&driver, ToyJob(3, 3));
  clock.Advance(absl::Seconds(29));
  driver.Tick();
  EXPECT_EQ(driver.List().size(), 2u);
  clock.Advance(absl::Seconds(1));
  driver.Tick();
  EXPECT_EQ(
      first->Next().status(),
      absl::UnavailableError("no pipeline came to be within 60 s: waiting for 1 more worker"));
  ASSERT_EQ(driver.List().size(), 1u);
  EXPECT_EQ(driver.List()[0].job_id(), second->id());
}

TEST(PipelineDriverPlanTest, TheWaitForAPipelineStartsWhenThePipelineGoes) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallDriver();
  options.clock = &clock;
  FakePipeline workers;
  PipelineDriver driver(options);
  driver.PauseAdmission();
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  clock.Advance(absl::Seconds(1000));
  driver.Tick();
  driver.Detach(absl::UnavailableError("gone"));
  clock.Advance(absl::Seconds(59));
  driver.Tick();
  EXPECT_EQ(driver.List().size(), 1u);
  clock.Advance(absl::Seconds(1));
  driver.Tick();
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kUnavailable);
}

TEST(PipelineDriverPlanTest, LooksAtTheRealClockByItself) {
  PipelineDriver::Options options = SmallDriver();
  options.pipeline_timeout = absl::Milliseconds(2);
  PipelineDriver driver(options);
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kUnavailable);
}

/// What a stage says that cannot run the step.
v1::Step Failed(v1::Step step, absl::StatusCode code, const std::string& message) {
  step.clear_results();
  step.mutable_error()->set_code(static_cast<int32_t>(code));
  step.mutable_error()->set_message(message);
  return step;
}

TEST(PipelineDriverPlanTest, JobsOfAStepThatFailsAreTriedAgainAFewTimes) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  const JobSpec failing_spec = ToyJob(3, 3);
  const JobSpec other_spec = ToyJob(3, 3, 1);
  auto failing = MustSubmit(&driver, failing_spec);
  const std::string why = "stage 1 on worker b: short read";
  const auto fail_once = [&](v1::Step step) {
    ASSERT_TRUE(
        workers.Deliver(&driver, Failed(std::move(step), absl::StatusCode::kDataLoss, why)).ok());
  };
  for (int i = 1; i < kMostInterruptions; ++i) fail_once(workers.Take());
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  EXPECT_EQ(failing->Next()->tokens.size(), 1u);
  for (int i = 1; i < kMostInterruptions; ++i) fail_once(workers.Take());
  v1::Step last = workers.Take();
  auto other = MustSubmit(&driver, other_spec);
  fail_once(std::move(last));
  const absl::Status failed = failing->Next().status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(failed.message()), AllOf(HasSubstr("5 times"), HasSubstr(why)));
  FakePipeline::Player player(&workers, &driver);
  EXPECT_EQ(ReadToEnd(other.get()).token_ids, kModel.Reply(other_spec));
}

TEST(PipelineDriverPlanTest, AStepThatNeverSucceedsFailsItsJobsAtOnce) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  ASSERT_TRUE(workers
                  .Deliver(&driver, Failed(workers.Take(), absl::StatusCode::kInvalidArgument,
                                           "slices that overlap"))
                  .ok());
  EXPECT_EQ(handle->Next().status(), absl::InvalidArgumentError("slices that overlap"));
  Drain(&driver, &workers);
}

TEST(PipelineDriverPlanTest, AStepErrorWithoutACodeIsInternal) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  for (int i = 0; i < kMostInterruptions; ++i) {
    ASSERT_TRUE(
        workers.Deliver(&driver, Failed(workers.Take(), absl::StatusCode::kOk, "what")).ok());
  }
  const absl::Status failed = handle->Next().status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("what"));
  Drain(&driver, &workers);
}

struct Broken {
  uint64_t plan_version;
  absl::Status why;
};

TEST(PipelineDriverPlanTest, AnswersThatMakeNoSenseBreakThePipeline) {
  BoundedQueue<Broken> told(4);
  PipelineDriver::Options options = SmallDriver();
  options.on_pipeline_broken = [&](uint64_t plan_version, const absl::Status& why) {
    told.Push({plan_version, why});
  };
  FakePipeline workers(Stages(1, 7));
  FakePipeline next(Stages(1, 8));
  PipelineDriver driver(options);
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  v1::Step step = workers.Take();
  step.mutable_results(0)->mutable_sampled(0)->set_token_id(97);
  const absl::Status refused = workers.Deliver(&driver, step);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInternal);
  const std::optional<Broken> broken = told.Pop();
  EXPECT_EQ(broken->plan_version, 7u);
  EXPECT_EQ(broken->why, refused);
  workers.WaitUntilClosed();

  driver.Attach(next.Connect());
  FakePipeline::Player player(&next, &driver);
  EXPECT_EQ(ReadToEnd(handle.get()).token_ids, kModel.Reply(ToyJob(3, 3)));
}

TEST(PipelineDriverPlanTest, ALostStepBreaksThePipeline) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto first = MustSubmit(&driver, ToyJob(3, 3));
  workers.Take();
  auto second = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(workers.Deliver(&driver, workers.Take()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(driver.CheckServing().code(), absl::StatusCode::kUnavailable);
  FakePipeline next(Stages(1, 2));
  driver.Attach(next.Connect());
  FakePipeline::Player player(&next, &driver);
  EXPECT_EQ(ReadToEnd(first.get()).token_ids, kModel.Reply(ToyJob(3, 3)));
  EXPECT_EQ(ReadToEnd(second.get()).token_ids, kModel.Reply(ToyJob(3, 3)));
}

TEST(PipelineDriverPlanTest, AFirstHopThatFailsBreaksThePipeline) {
  BoundedQueue<Broken> told(4);
  PipelineDriver* driver_in_callback = nullptr;
  FakePipeline workers(Stages(1, 7));
  FakePipeline next(Stages(1, 8));
  PipelineDriver::Options options = SmallDriver();
  options.on_pipeline_broken = [&](uint64_t plan_version, const absl::Status& why) {
    // What a controller would do: the callback may call back.
    driver_in_callback->Detach(why);
    driver_in_callback->Attach(next.Connect());
    told.Push({plan_version, why});
  };
  PipelineDriver driver(options);
  driver_in_callback = &driver;
  workers.BreakFirstHop(absl::UnavailableError("connection reset"));
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  const std::optional<Broken> broken = told.Pop();
  EXPECT_EQ(broken->plan_version, 7u);
  EXPECT_EQ(broken->why.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(broken->why.message()), HasSubstr("first stage: connection reset"));
  FakePipeline::Player player(&next, &driver);
  EXPECT_EQ(ReadToEnd(handle.get()).token_ids, kModel.Reply(ToyJob(3, 3)));
}

TEST(PipelineDriverPlanTest, PausedAdmissionLetsThePipelineRunDry) {
  FakePipeline first(Stages(1, 1));
  FakePipeline second(Stages(1, 2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(first.Connect());
  auto running = MustSubmit(&driver, ToyJob(3, 3));
  v1::Step step = first.Take();
  driver.PauseAdmission();
  const JobSpec spec = ToyJob(4, 4);
  auto queued = MustSubmit(&driver, spec);
  EXPECT_FALSE(driver.Idle());
  ASSERT_TRUE(first.Deliver(&driver, step).ok());
  FakePipeline::Player first_player(&first, &driver);
  EXPECT_TRUE(ReadToEnd(running.get()).status.ok());
  EXPECT_TRUE(driver.Idle());
  EXPECT_EQ(driver.List()[0].state(), v1::JOB_STATE_QUEUED);

  driver.Detach(absl::AbortedError("a new plan"));
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  driver.ResumeAdmission();
  EXPECT_EQ(ReadToEnd(queued.get()).token_ids, kModel.Reply(spec));
  EXPECT_THAT(first.sequences_seen(), ElementsAre(running->id()));
}

TEST(PipelineDriverPlanTest, CountsOverAllPlans) {
  FakePipeline first(Stages(1, 1));
  FakePipeline second(Stages(1, 2));
  PipelineDriver driver(SmallDriver());
  EXPECT_EQ(driver.CheckServing().code(), absl::StatusCode::kUnavailable);
  driver.Attach(first.Connect());
  EXPECT_TRUE(driver.CheckServing().ok());
  EXPECT_EQ(driver.stats().kv_blocks_total, 64);
  {
    FakePipeline::Player player(&first, &driver);
    ReadToEnd(MustSubmit(&driver, ToyJob(3, 3)).get());
  }
  driver.Detach(absl::AbortedError("a new plan"));
  EXPECT_EQ(driver.stats().kv_blocks_total, 0);
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  ReadToEnd(MustSubmit(&driver, ToyJob(3, 2)).get());
  EXPECT_EQ(driver.stats().steps, 3 + 2);
}

}  // namespace
}  // namespace caravan
