// Jobs: from Submit to their end.

#include "coordinator/pipeline_driver.h"

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(PipelineDriverTest, RunsAJobToItsLength) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
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
  EXPECT_GT(workers.blocks_written(), 32) << "the KV cache was never half full";
}

TEST(PipelineDriverTest, CutsTheReplyToTheContext) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, ToyJob(60, 1000)).get());
  EXPECT_EQ(outcome.token_ids.size(), 4u);
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
}

TEST(PipelineDriverTest, FinishesAtOnceWhatHasNothingToDo) {
  PipelineDriver driver(SmallDriver());
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, ToyJob(64, 10)).get());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.reason, v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(outcome.token_ids, IsEmpty());
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverTest, RefusesBadJobsWithOrWithoutAPipeline) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_TRUE(driver.Cancel(handle->id()).ok());
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(driver.Cancel(handle->id()).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(driver.Cancel(99).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(driver.List().empty());
}

TEST(PipelineDriverTest, CancelsDuringPrefillAndFreesTheBlocks) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(20, 3));
  v1::Step in_flight = workers.Take();
  handle->Cancel();
  handle->Cancel();
  EXPECT_EQ(handle->Next().status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(driver.List().empty());
  EXPECT_EQ(driver.stats().kv_blocks_used, 0);
  EXPECT_FALSE(driver.Idle()) << "a slice is still in flight";
  ASSERT_TRUE(workers.Deliver(&driver, in_flight).ok());
  EXPECT_TRUE(driver.Idle());
}

TEST(PipelineDriverTest, CancelsDuringDecodeAfterTheTokensSoFar) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
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
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 10));
  v1::Step step = workers.Take();
  handle.reset();
  EXPECT_TRUE(driver.List().empty());
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  Drain(&driver, &workers);
}

TEST(PipelineDriverTest, RefusesWhatCanNeverFitTheCache) {
  FakePipeline::Options small = Stages(1);
  small.kv_blocks = 5;
  FakePipeline workers(small);
  PipelineDriver driver(SmallDriver());
  auto early = MustSubmit(&driver, ToyJob(10, 11));
  auto fits = MustSubmit(&driver, ToyJob(10, 10));
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  EXPECT_EQ(early->Next().status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ReadToEnd(fits.get()).token_ids.size(), 10u);
  const absl::Status refused = driver.Submit(ToyJob(10, 11)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("6 KV blocks of 4; the cluster has 5"));
}

TEST(PipelineDriverTest, RefusesMoreJobsThanTheQueueHolds) {
  PipelineDriver::Options options = SmallDriver();
  options.max_queued_jobs = 2;
  PipelineDriver driver(options);
  auto first = MustSubmit(&driver, ToyJob(3, 3));
  auto second = MustSubmit(&driver, ToyJob(3, 3));
  EXPECT_EQ(driver.Submit(ToyJob(3, 3)).status(),
            absl::ResourceExhaustedError("the queue is full: 2 jobs wait"));
  first->Cancel();
  EXPECT_TRUE(driver.Submit(ToyJob(3, 3)).ok());
}

TEST(PipelineDriverTest, ListsJobsById) {
  SimulatedClock clock;
  PipelineDriver::Options options = SmallDriver();
  options.clock = &clock;
  FakePipeline workers;
  PipelineDriver driver(options);
  driver.Attach(workers.Connect());
  auto running = MustSubmit(&driver, ToyJob(8, 12));
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  clock.Advance(absl::Seconds(2));
  driver.PauseAdmission();
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

TEST(PipelineDriverTest, ScoresThePromptBesideTheReply) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  for (const int64_t max_new_tokens : {0, 3}) {
    JobSpec spec = ToyJob(19, max_new_tokens);
    spec.score_prompt = true;
    const Outcome outcome = ReadToEnd(MustSubmit(&driver, spec).get());
    EXPECT_TRUE(outcome.status.ok());
    EXPECT_EQ(outcome.token_ids, kModel.Reply(spec));
    EXPECT_EQ(outcome.prompt_scores, kModel.PromptScores(spec));
  }
}

TEST(PipelineDriverTest, GoesOnBehindAReplyThatAnEarlierLifeBegan) {
  FakePipeline workers(Stages(2));
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const JobSpec whole = ToyJob(9, 12);
  const std::vector<int32_t> reply = kModel.Reply(whole);
  JobSpec rest = whole;
  rest.reply.assign(reply.begin(), reply.begin() + 5);
  const Outcome outcome = ReadToEnd(MustSubmit(&driver, rest).get());
  EXPECT_THAT(outcome.token_ids, ElementsAreArray(reply.begin() + 5, reply.end()));
}

TEST(PipelineDriverTest, ASecondJobWithTheSamePromptPrefillsItsLastTokenOnly) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  FakePipeline::Player player(&workers, &driver);
  const JobSpec spec = ToyJob(19, 4);
  ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_EQ(driver.stats().steps, 3 + 3);
  const Outcome second = ReadToEnd(MustSubmit(&driver, spec).get());
  EXPECT_EQ(second.token_ids, kModel.Reply(spec));
  EXPECT_EQ(second.cached_prompt_tokens, 18);
  EXPECT_EQ(driver.stats().steps, 6 + 1 + 3) << "one chunk instead of three";
  EXPECT_EQ(driver.stats().prompt_tokens, 2 * 19);
  EXPECT_EQ(driver.stats().generated_tokens, 2 * 4);
  EXPECT_EQ(driver.stats().prefix_cache_hit_tokens, 18);
  EXPECT_EQ(driver.stats().prefix_cache_query_tokens, 2 * 19);
}

TEST(PipelineDriverTest, TellsListenersWithoutALock) {
  FakePipeline workers;
  PipelineDriver driver(SmallDriver());
  driver.Attach(workers.Connect());
  auto handle = MustSubmit(&driver, ToyJob(3, 3));
  BoundedQueue<size_t> told(4);
  // Would wait for itself if the driver held its lock.
  handle->SetListener([&] { told.Push(driver.List().size()); });
  ASSERT_TRUE(workers.Deliver(&driver, workers.Take()).ok());
  EXPECT_EQ(told.Pop(), 1u);
  handle->Cancel();
  EXPECT_TRUE(handle->Next(absl::ZeroDuration()).ok());
  EXPECT_FALSE(handle->Next(absl::ZeroDuration()).ok());
}

class RecordingObserver final : public PipelineObserver {
 public:
  void OnFirstToken(JobPriority /*priority*/, absl::Duration since_submit) override {
    events.push_back(absl::StrCat("first ", absl::FormatDuration(since_submit)));
  }
  void OnTokenGap(JobPriority /*priority*/, absl::Duration gap) override {
    events.push_back(absl::StrCat("gap ", absl::FormatDuration(gap)));
  }
  void OnJobEnded(JobPriority priority, JobOutcome outcome, absl::Duration since_submit) override {
    events.push_back(absl::StrCat(priority == JobPriority::kBulk ? "bulk" : "interactive",
                                  outcome == JobOutcome::kFinished ? " finished " : " cancelled ",
                                  absl::FormatDuration(since_submit)));
  }
  void OnStepReturned(int64_t rows, absl::Duration round_trip) override {
    events.push_back(absl::StrCat("step ", rows, " ", absl::FormatDuration(round_trip)));
  }
  std::vector<std::string> events;
};

TEST(PipelineDriverTest, TellsItsObserverHowLongThingsTook) {
  SimulatedClock clock;
  RecordingObserver observer;
  PipelineDriver::Options options = SmallDriver();
  options.clock = &clock;
  options.observer = &observer;
  FakePipeline workers;
  PipelineDriver driver(options);
  auto handle = MustSubmit(&driver, ToyJob(3, 2));
  clock.Advance(absl::Seconds(1));
  driver.Attach(workers.Connect());
  v1::Step step = workers.Take();
  clock.Advance(absl::Seconds(2));
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  step = workers.Take();
  clock.Advance(absl::Seconds(4));
  ASSERT_TRUE(workers.Deliver(&driver, step).ok());
  JobSpec bulk = ToyJob(3, 2);
  bulk.priority = JobPriority::kBulk;
  driver.PauseAdmission();
  MustSubmit(&driver, bulk)->Cancel();
  EXPECT_THAT(observer.events,
              ElementsAre("first 3s", "step 3 2s", "gap 4s", "interactive finished 7s", "step 1 4s",
                          "bulk cancelled 0"));
}

TEST(PipelineDriverTest, NeverGivesAnIdTwice) {
  PipelineDriver::Options options = SmallDriver();
  options.first_job_id = 100;
  PipelineDriver driver(options);
  const uint64_t reserved = driver.NewJobId();
  auto other = MustSubmit(&driver, ToyJob(3, 3));
  JobSpec spec = ToyJob(3, 3);
  spec.id = reserved;
  auto own = MustSubmit(&driver, spec);
  EXPECT_EQ(reserved, 100u);
  EXPECT_EQ(other->id(), 101u);
  EXPECT_EQ(own->id(), 100u);
}

TEST(PipelineDriverTest, RandomJobsAndCancelsLeaveNothingBehind) {
  int64_t preemptions = 0;
  int64_t hits = 0;
  int64_t accepted = 0;
  int64_t refused = 0;
  int64_t restored = 0;
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    FakePipeline::Options stages = Stages(draw(1, 4));
    stages.kv_blocks = 40;
    stages.max_step_tokens = draw(1, 24);
    stages.drafts = static_cast<FakePipeline::Drafts>(seed % 4);
    stages.num_drafts = draw(1, 3);
    FakeArchive archive;
    if (seed % 3 > 0) stages.archive = &archive;
    FakePipeline first(stages);
    stages.plan_version = 2;
    FakePipeline workers(stages);
    PipelineDriver driver(SmallDriver());
    driver.Attach(first.Connect());
    auto player = std::make_unique<FakePipeline::Player>(&first, &driver);

    struct Submitted {
      JobSpec spec;
      std::unique_ptr<JobHandle> handle;
      bool cancelled = false;
    };
    std::vector<Submitted> jobs;
    for (int i = 0; i < 200; ++i) {
      if (i == 100) {
        player.reset();
        driver.Detach(absl::UnavailableError("a worker is lost"));
        driver.Attach(workers.Connect());
        player = std::make_unique<FakePipeline::Player>(&workers, &driver);
      }
      Submitted& job = jobs.emplace_back();
      job.spec = ToyJob(draw(1, 40), draw(1, 20), draw(0, 9));  // some begin alike
      if (draw(0, 1) == 0) job.spec.priority = JobPriority::kBulk;
      if (draw(0, 9) == 0) {
        job.spec.prompt_logits = true;
        job.spec.max_new_tokens = 0;
      } else if (draw(0, 9) == 0) {
        job.spec.score_prompt = true;
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
        EXPECT_EQ(outcome.prompt_scores, job.spec.score_prompt ? kModel.PromptScores(job.spec)
                                                               : std::vector<ScoredToken>());
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
    preemptions += driver.stats().preemptions;
    hits += driver.stats().prefix_cache_hit_tokens;
    accepted += driver.stats().draft_accepted_tokens;
    restored += archive.restored;
    refused += driver.stats().draft_tokens - driver.stats().draft_accepted_tokens;
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(hits, 0);
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, 0);
  EXPECT_GT(restored, 0);
}

}  // namespace
}  // namespace caravan
