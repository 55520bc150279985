#include "coordinator/pipeline_driver.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/bounded_queue.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr ToyModel kModel;

PipelineDriver::Options SmallOptions() {
  PipelineDriver::Options options;
  options.vocab_size = kModel.vocab_size;
  options.context_tokens = 64;
  options.prefill_chunk = 8;
  return options;
}

FakePipeline::Options Stages(int num_stages, uint64_t plan_version = 1) {
  FakePipeline::Options options;
  options.num_stages = num_stages;
  options.plan_version = plan_version;
  return options;
}

std::unique_ptr<JobHandle> MustSubmit(PipelineDriver* driver, const JobSpec& spec) {
  auto handle = driver->Submit(spec);
  EXPECT_TRUE(handle.ok()) << handle.status().ToString();
  return handle.ok() ? *std::move(handle) : nullptr;
}

/// What a job came to.
struct Outcome {
  absl::Status status;
  std::vector<int32_t> token_ids;
  std::vector<float> logits;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};

Outcome ReadToEnd(JobHandle* handle) {
  Outcome outcome;
  while (true) {
    auto update = handle->Next();
    if (!update.ok()) {
      outcome.status = update.status();
      return outcome;
    }
    for (const ScoredToken& token : update->tokens) outcome.token_ids.push_back(token.token_id);
    outcome.logits.insert(outcome.logits.end(), update->logits.begin(), update->logits.end());
    if (update->finished) {
      outcome.reason = update->reason;
      return outcome;
    }
  }
}

/// Delivers steps by hand until no job is left and the workers hold nothing.
void Drain(PipelineDriver* driver, FakePipeline* workers) {
  while (!driver->Idle()) ASSERT_TRUE(workers->Deliver(driver, workers->Take()).ok());
  EXPECT_EQ(workers->used_blocks(), 0);
}

TEST(PipelineDriverTest, RunsAJobToItsLength) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const JobSpec spec = ToyJob(19, 12);
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome.token_ids.size(), 12u);
  EXPECT_EQ(outcome.token_ids, kModel.Reply(spec));
}

TEST(PipelineDriverTest, HandsOutEachTokenWithItsLogProbability) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  const JobSpec spec = ToyJob(3, 2);
  auto handle = MustSubmit(&driver, spec);
  v1::Step step = workers.Take();
  EXPECT_EQ(step.step_id(), 1u);
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  auto update = handle->Next();
  ASSERT_TRUE(update.ok());
  ASSERT_EQ(update->tokens.size(), 1u);
  const ScoredToken expected = kModel.Next(spec.prompt, spec.sampling);
  EXPECT_EQ(update->tokens[0].token_id, expected.token_id);
  EXPECT_EQ(update->tokens[0].log_probability, expected.log_probability);
  EXPECT_FALSE(update->finished);
}

TEST(PipelineDriverTest, StopsAtAStopToken) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  JobSpec spec = ToyJob(5, 12);
  spec.stop_token_ids = {kModel.Reply(spec)[3]};
  const std::vector<int32_t> expected = kModel.Reply(spec);
  ASSERT_LT(expected.size(), 12u);
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(outcome.token_ids, expected);
}

TEST(PipelineDriverTest, PassesTheSeedOn) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  JobSpec spec = ToyJob(5, 8);
  spec.sampling.set_temperature(0.5);
  std::vector<std::vector<int32_t>> replies;
  for (const uint64_t seed : {11, 12}) {
    spec.sampling.set_seed(seed);
    replies.push_back(ReadToEnd(MustSubmit(&driver, spec).get()).token_ids);
    EXPECT_EQ(replies.back(), kModel.Reply(spec));
  }
  EXPECT_NE(replies[0], replies[1]);
}

TEST(PipelineDriverTest, GivesManyJobsTheTokensThatEachGetsAlone) {
  FakePipeline workers(Stages(3));
  PipelineDriver driver(SmallOptions());
  std::vector<JobSpec> specs;
  std::vector<std::unique_ptr<JobHandle>> handles;
  for (int i = 0; i < 30; ++i) {
    specs.push_back(ToyJob(1 + i, 1 + i % 11, i));
    handles.push_back(MustSubmit(&driver, specs.back()));
  }
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(ReadToEnd(handles[i].get()).token_ids, kModel.Reply(specs[i])) << "job " << i;
  }
  EXPECT_GT(workers.max_slices_in_a_step(), 1) << "the jobs never ran together";
  EXPECT_GT(workers.max_used_blocks(), 32) << "the KV cache was never half full";
}

TEST(PipelineDriverTest, CutsTheReplyToTheContext) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, ToyJob(60, 1000)).get());
  EXPECT_EQ(outcome.token_ids.size(), 4u);
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
}

TEST(PipelineDriverTest, FinishesAtOnceWhatHasNothingToDo) {
  PipelineDriver driver(SmallOptions());
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, ToyJob(64, 10)).get());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(outcome.token_ids, IsEmpty());
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverTest, RefusesBadJobsWithOrWithoutAPipeline) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  for (int attached = 0; attached < 2; ++attached) {
    EXPECT_EQ(driver.Submit(ToyJob(0, 1)).status(),
              absl::InvalidArgumentError("the prompt is empty"));
    EXPECT_EQ(driver.Submit(ToyJob(65, 1)).status(),
              absl::InvalidArgumentError("the prompt has 65 tokens, more than the context of 64"));
    if (attached == 0) driver.Attach(workers.Connect());
  }
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverTest, ScoresAPrompt) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  JobSpec spec = ToyJob(19, 0);
  spec.prompt_logits = true;
  auto handle = MustSubmit(&driver, spec);
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  EXPECT_EQ(handle->Next()->first_logits_position, 0);
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  EXPECT_EQ(handle->Next()->first_logits_position, 8);
  FakePipeline::Player player(&workers, &driver);
  EXPECT_EQ(ReadToEnd(handle.get()).reason, v1::FINISH_REASON_LENGTH);

  const Outcome whole = ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_THAT(whole.logits, ElementsAreArray(kModel.PromptLogits(spec)));
  EXPECT_THAT(whole.token_ids, IsEmpty());
}

TEST(PipelineDriverTest, CancelsAQueuedJob) {
  PipelineDriver driver(SmallOptions());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_TRUE(driver.Cancel(handle->id()).ok());
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(driver.Cancel(handle->id()).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(driver.Cancel(99).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverTest, CancelsDuringPrefillAndFreesTheBlocks) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(20, 3));
  v1::Step in_flight = workers.Take();
  handle->Cancel();
  handle->Cancel();
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(driver.List().empty());
  EXPECT_FALSE(driver.Idle()) << "a slice is still in flight";
  ASSERT_TRUE(workers.Deliver(&driver, in_flight).ok());
  const v1::Step frees = workers.Take();
  EXPECT_THAT(frees.freed_sequence_ids(), ElementsAre(handle->id()));
  EXPECT_EQ(frees.slices_size(), 0);
  ASSERT_TRUE(workers.Deliver(&driver, frees).ok());
  EXPECT_TRUE(driver.Idle());
  EXPECT_EQ(workers.used_blocks(), 0);
}

TEST(PipelineDriverTest, CancelsDuringDecodeAfterTheTokensSoFar) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 10));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  const v1::Step third = workers.Take();
  EXPECT_TRUE(driver.Cancel(handle->id()).ok());
  ASSERT_TRUE(workers.Deliver(&driver, third).ok());
  const Outcome outcome = ReadToEnd(handle.get());
  EXPECT_EQ(outcome.token_ids.size(), 2u);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
  Drain(&driver, &workers);
}

TEST(PipelineDriverTest, DroppingTheHandleCancels) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 10));
  v1::Step step = workers.Take();
  handle.reset();
  EXPECT_TRUE(driver.List().empty());
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  Drain(&driver, &workers);
}

TEST(PipelineDriverTest, AHandleMayOutliveTheDriver) {
  std::unique_ptr<JobHandle> handle;
  {
    FakePipeline workers;
    PipelineDriver driver(SmallOptions());
    driver.Attach(workers.Connect());
    handle = MustSubmit(&driver, ToyJob(3, 10));
    workers.Take();
  }
  handle->Cancel();
  EXPECT_EQ(handle->Next().status(), absl::UnavailableError("the coordinator is shutting down"));
}

TEST(PipelineDriverTest, ShutdownEndsAllJobsAndRefusesNewOnes) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  auto queued = MustSubmit(&driver, ToyJob(3, 10));
  driver.Shutdown();
  driver.Attach(workers.Connect());
  EXPECT_EQ(queued->Next().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(driver.Submit(ToyJob(3, 10)).status().code(), absl::StatusCode::kUnavailable);
}

TEST(PipelineDriverTest, DetachFailsRunningJobsAndKeepsQueuedOnes) {
  FakePipeline::Options first_plan = Stages(1, 1);
  first_plan.kv_blocks = 5;
  FakePipeline first(first_plan);
  FakePipeline second(Stages(2, 2));
  PipelineDriver driver(SmallOptions());
  driver.Attach(first.Connect());
  const JobSpec running_spec = ToyJob(8, 12);  // takes all blocks
  const JobSpec queued_spec = ToyJob(7, 9);
  auto running = MustSubmit(&driver, running_spec);
  ASSERT_TRUE(first.Deliver(&driver, first.Take()).ok());
  auto queued = MustSubmit(&driver, queued_spec);
  const v1::Step lost = first.Take();

  const absl::Status why = absl::UnavailableError("worker b is gone");
  driver.Detach(why);
  driver.Detach(why);
  first.WaitUntilClosed();
  const Outcome outcome = ReadToEnd(running.get());
  EXPECT_EQ(outcome.status, why);
  EXPECT_EQ(outcome.token_ids.size(), 1u) << "what was generated before is read";
  ASSERT_EQ(driver.List().size(), 1u);
  EXPECT_EQ(driver.List()[0].state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(first.Deliver(&driver, lost).code(), absl::StatusCode::kAborted);

  driver.Attach(second.Connect());
  EXPECT_EQ(driver.Receive(lost).code(), absl::StatusCode::kAborted) << "another plan's step";
  FakePipeline::Player player(&second, &driver);
  EXPECT_EQ(ReadToEnd(queued.get()).token_ids, kModel.Reply(queued_spec));
}

TEST(PipelineDriverTest, RefusesWhatCanNeverFitTheCache) {
  FakePipeline::Options small = Stages(1);
  small.kv_blocks = 5;
  FakePipeline workers(small);
  PipelineDriver driver(SmallOptions());
  auto early = MustSubmit(&driver, ToyJob(10, 11));
  auto fits = MustSubmit(&driver, ToyJob(10, 10));
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  EXPECT_EQ(early->Next().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadToEnd(fits.get()).token_ids.size(), 10u);
  const absl::Status refused = driver.Submit(ToyJob(10, 11)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("6 KV blocks of 4; the cluster has 5"));
}

TEST(PipelineDriverTest, RefusesMoreJobsThanTheQueueHolds) {
  PipelineDriver::Options options = SmallOptions();
  options.max_queued_jobs = 2;
  PipelineDriver driver(options);
  auto first = MustSubmit(&driver, ToyJob(3, 3));
  auto second = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(driver.Submit(ToyJob(3, 3)).status(),
            absl::ResourceExhaustedError("the queue is full: 2 jobs wait"));
  first->Cancel();
  EXPECT_TRUE(driver.Submit(ToyJob(3, 3)).ok());
}

TEST(PipelineDriverTest, QueuedJobsGiveUpWhenNoPipelineComes) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallOptions();
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

TEST(PipelineDriverTest, TheWaitForAPipelineStartsWhenThePipelineGoes) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallOptions();
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

TEST(PipelineDriverTest, LooksAtTheRealClockByItself) {
  PipelineDriver::Options options = SmallOptions();
  options.pipeline_timeout = absl::Milliseconds(2);
  PipelineDriver driver(options);
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kUnavailable);
}

TEST(PipelineDriverTest, ListsJobsOldestFirst) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallOptions();
  options.clock = &clock;
  FakePipeline::Options small = Stages(1);
  small.kv_blocks = 5;
  FakePipeline workers(small);
  PipelineDriver driver(options);
  driver.Attach(workers.Connect());
  auto running = MustSubmit(&driver, ToyJob(8, 12));
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  clock.Advance(absl::Seconds(2));
  auto queued = MustSubmit(&driver, ToyJob(4, 1));
  clock.Advance(absl::Seconds(3));
  const std::vector<v1::JobSummary> jobs = driver.List();
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs[0].job_id(), running->id());
  EXPECT_EQ(jobs[0].state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(jobs[0].prompt_tokens(), 8u);
  EXPECT_EQ(jobs[0].completion_tokens(), 1u);
  EXPECT_EQ(jobs[0].age_s(), 5);
  EXPECT_EQ(jobs[1].job_id(), queued->id());
  EXPECT_EQ(jobs[1].state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(jobs[1].age_s(), 3);
}

TEST(PipelineDriverTest, AStepErrorFailsThatStepsJobsOnly) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto failing = MustSubmit(&driver, ToyJob(3, 3));
  v1::Step step = workers.Take();
  const JobSpec other_spec = ToyJob(3, 3, 1);
  auto other = MustSubmit(&driver, other_spec);
  step.clear_results();
  step.mutable_error()->set_code(15);
  step.mutable_error()->set_message("stage 1 on worker b: short read");
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  EXPECT_EQ(failing->Next().status(), absl::DataLossError("stage 1 on worker b: short read"));
  FakePipeline::Player player(&workers, &driver);
  EXPECT_EQ(ReadToEnd(other.get()).token_ids, kModel.Reply(other_spec));
}

TEST(PipelineDriverTest, AStepErrorWithoutACodeIsInternal) {
  FakePipeline workers;
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  v1::Step step = workers.Take();
  step.mutable_error()->set_message("what");
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  EXPECT_EQ(handle->Next().status(), absl::InternalError("what"));
  Drain(&driver, &workers);
}

struct Broken {
  uint64_t plan_version;
  absl::Status why;
};

TEST(PipelineDriverTest, AnswersThatMakeNoSenseBreakThePipeline) {
  BoundedQueue<Broken> told(4);
  PipelineDriver::Options options = SmallOptions();
  options.on_pipeline_broken = [&](uint64_t plan_version, const absl::Status& why) {
    told.Push({plan_version, why});
  };
  FakePipeline workers(Stages(1, 7));
  FakePipeline next(Stages(1, 8));
  PipelineDriver driver(options);
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  v1::Step step = workers.Take();
  step.mutable_results(0)->set_token_id(97);
  const absl::Status refused = workers.Deliver(&driver, step);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(handle->Next().status(), refused);
  const std::optional<Broken> broken = told.Pop();
  EXPECT_EQ(broken->plan_version, 7u);
  EXPECT_EQ(broken->why, refused);
  workers.WaitUntilClosed();

  driver.Attach(next.Connect());
  FakePipeline::Player player(&next, &driver);
  EXPECT_TRUE(ReadToEnd(MustSubmit(&driver, ToyJob(3, 3)).get()).status.ok());
}

TEST(PipelineDriverTest, ALostStepBreaksThePipeline) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallOptions());
  driver.Attach(workers.Connect());
  auto first = MustSubmit(&driver, ToyJob(3, 3));
  workers.Take();
  auto second = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(workers.Deliver(&driver, workers.Take()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(first->Next().ok());
  EXPECT_FALSE(second->Next().ok());
}

TEST(PipelineDriverTest, AFirstHopThatFailsBreaksThePipeline) {
  BoundedQueue<Broken> told(4);
  PipelineDriver* driver_in_callback = nullptr;
  FakePipeline workers(Stages(1, 7));
  FakePipeline next(Stages(1, 8));
  PipelineDriver::Options options = SmallOptions();
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
  const absl::Status failed = handle->Next().status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("first stage: connection reset"));
  EXPECT_EQ(told.Pop()->plan_version, 7u);
  FakePipeline::Player player(&next, &driver);
  EXPECT_TRUE(ReadToEnd(MustSubmit(&driver, ToyJob(3, 3)).get()).status.ok());
}

TEST(PipelineDriverTest, PausedAdmissionLetsThePipelineRunDry) {
  BoundedQueue<bool> idle(4);
  PipelineDriver::Options options = SmallOptions();
  options.on_idle = [&] { idle.Push(true); };
  FakePipeline first(Stages(1, 1));
  FakePipeline second(Stages(1, 2));
  PipelineDriver driver(options);
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
  EXPECT_TRUE(idle.Pop().has_value());
  EXPECT_TRUE(driver.Idle());
  EXPECT_EQ(first.used_blocks(), 0) << "frees are home before the driver says that it is idle";
  EXPECT_EQ(driver.List()[0].state(), v1::JOB_STATE_QUEUED);

  driver.Detach(absl::AbortedError("a new plan"));
  driver.Attach(second.Connect());
  FakePipeline::Player player(&second, &driver);
  driver.ResumeAdmission();
  EXPECT_EQ(ReadToEnd(queued.get()).token_ids, kModel.Reply(spec));
  EXPECT_THAT(first.sequences_seen(), ElementsAre(running->id()));
}

TEST(PipelineDriverTest, SaysOnceThatItIsIdleAlready) {
  BoundedQueue<bool> idle(4);
  PipelineDriver::Options options = SmallOptions();
  options.on_idle = [&] { idle.Push(true); };
  PipelineDriver driver(options);
  driver.PauseAdmission();
  driver.PauseAdmission();
  EXPECT_TRUE(idle.Pop().has_value());
  driver.Shutdown();
  idle.Close();
  EXPECT_FALSE(idle.Pop().has_value());
}

TEST(PipelineDriverTest, RandomJobsAndCancelsLeaveNothingBehind) {
  for (const uint32_t seed : {1u, 2u, 3u, 4u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    FakePipeline::Options stages = Stages(draw(1, 4));
    stages.kv_blocks = 40;
    stages.max_step_tokens = draw(1, 24);
    FakePipeline workers(stages);
    PipelineDriver driver(SmallOptions());
    driver.Attach(workers.Connect());
    auto player = std::make_unique<FakePipeline::Player>(&workers, &driver);

    struct Submitted {
      JobSpec spec;
      std::unique_ptr<JobHandle> handle;
      bool cancelled = false;
    };
    std::vector<Submitted> jobs;
    for (int i = 0; i < 200; ++i) {
      Submitted& job = jobs.emplace_back();
      job.spec = ToyJob(draw(1, 40), draw(1, 20), i);
      if (draw(0, 9) == 0) {
        job.spec.prompt_logits = true;
        job.spec.max_new_tokens = 0;
      } else if (draw(0, 1) == 0) {
        job.spec.stop_token_ids = {draw(0, 96), draw(0, 96), draw(0, 96)};
      }
      job.handle = MustSubmit(&driver, job.spec);
      Submitted& other = jobs[static_cast<size_t>(draw(0, i))];
      const int fate = draw(0, 5);
      if (fate == 0 && other.handle != nullptr) {
        other.handle->Cancel();
        other.cancelled = true;
      } else if (fate == 1) {
        other.handle.reset();
      }
    }
    for (Submitted& job : jobs) {
      if (job.handle == nullptr) continue;
      const Outcome outcome = ReadToEnd(job.handle.get());
      const std::vector<int32_t> reply = kModel.Reply(job.spec);
      if (outcome.status.ok()) {
        EXPECT_EQ(outcome.token_ids, reply);
        EXPECT_EQ(outcome.logits,
                  job.spec.prompt_logits ? kModel.PromptLogits(job.spec) : std::vector<float>());
      } else {
        EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
        EXPECT_TRUE(job.cancelled);
        const auto count = static_cast<ptrdiff_t>(outcome.token_ids.size());
        ASSERT_LE(outcome.token_ids.size(), reply.size());
        EXPECT_THAT(outcome.token_ids, ElementsAreArray(reply.begin(), reply.begin() + count));
      }
    }
    EXPECT_TRUE(driver.List().empty());
    player.reset();
    Drain(&driver, &workers);
  }
}

}  // namespace
}  // namespace caravan
