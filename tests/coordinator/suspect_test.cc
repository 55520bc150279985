// Jobs that take their pipeline down whenever they run, and those beside them.

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/scheduler_testing.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

bool Carries(const v1::Step& step, const Sequence* sequence) {
  return std::any_of(
      step.slices().begin(), step.slices().end(),
      [&](const v1::SequenceSlice& slice) { return slice.sequence_id() == sequence->id(); });
}

/// These ran together when the pipeline went twice.
void MakeSuspects(const std::vector<Sequence*>& sequences) {
  std::vector<Suspicion*> all;
  for (Sequence* const sequence : sequences) all.push_back(&sequence->suspicion());
  for (int i = 0; i < kSuspectInterruptions; ++i) Suspicion::Interrupt(all);
}

TEST(SuspectTest, RunsAloneOnceAllStepsAreHomeAndOthersFollow) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* const older = bench.Add(ToyJob(8, 4));
  const v1::Step under_way = bench.Next();
  Sequence* const suspect = bench.Add(ToyJob(4, 4, 1));
  MakeSuspects({suspect});
  Sequence* const younger = bench.Add(ToyJob(4, 4, 2));
  EXPECT_TRUE(bench.NothingDue()) << "a step is under way that others are in";
  bench.Home(under_way);
  const v1::Step alone = bench.Next();
  EXPECT_EQ(alone.slices_size(), 1);
  EXPECT_TRUE(Carries(alone, suspect));
  EXPECT_TRUE(bench.NothingDue());
  bench.Home(alone);
  EXPECT_TRUE(Carries(bench.Next(), suspect)) << "it is one until somebody says otherwise";

  suspect->suspicion().Clear();
  const v1::Step together = bench.Next();
  EXPECT_TRUE(Carries(together, older));
  EXPECT_TRUE(Carries(together, younger));
  EXPECT_TRUE(suspect->running());
}

TEST(SuspectTest, WhoWaitsKeepsItsBlocksAndGoesOnWhereItWas) {
  Bench bench(SmallOptions());
  Sequence* const prefilling = bench.Add(ToyJob(24, 2));
  Sequence* const decoding = bench.Add(ToyJob(4, 4, 1));
  bench.Home(bench.Next());
  ASSERT_EQ(prefilling->cached_tokens(), 8);
  ASSERT_EQ(decoding->generated_tokens(), 1);
  Sequence* const suspect = bench.Add(ToyJob(4, 1, 2));
  MakeSuspects({suspect});
  const v1::Step alone = bench.Next();
  EXPECT_EQ(Ids(alone), std::vector<uint64_t>{suspect->id()});
  EXPECT_TRUE(prefilling->running() && decoding->running());
  bench.Home(alone);
  const v1::Step next = bench.Next();
  ASSERT_EQ(Ids(next), (std::vector<uint64_t>{decoding->id(), prefilling->id()}));
  EXPECT_EQ(next.slices(0).first_position(), 4u);
  EXPECT_EQ(next.slices(1).first_position(), 8u);
  bench.Home(next);
  bench.Drain();
  EXPECT_EQ(bench.scheduler().counters().preemptions, 0);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 64);
}

TEST(SuspectTest, WhoWaitsGivesItsBlocksBackWhereASuspectHasNoRoom) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 6;
  Bench bench(options);
  Sequence* const older = bench.Add(ToyJob(8, 4));
  Sequence* const younger = bench.Add(ToyJob(8, 4, 1));
  bench.Home(bench.Next());
  ASSERT_TRUE(older->running() && younger->running());
  Sequence* const suspect = bench.Add(ToyJob(16, 1, 2));
  MakeSuspects({suspect});
  EXPECT_EQ(Ids(bench.Next()), std::vector<uint64_t>{suspect->id()});
  EXPECT_TRUE(older->running());
  EXPECT_FALSE(younger->running());
}

TEST(SuspectTest, HalfOfTheSuspectsRunTogetherThenTheOthers) {
  Bench bench(SmallOptions());
  Sequence* const other = bench.Add(ToyJob(4, 1));
  std::vector<Sequence*> suspects;
  for (int i = 0; i < 4; ++i) suspects.push_back(bench.Add(ToyJob(4, 2, i + 1)));
  MakeSuspects(suspects);
  const v1::Step first = bench.Next();
  EXPECT_EQ(Ids(first), (std::vector<uint64_t>{suspects[0]->id(), suspects[1]->id()}));
  bench.Home(first);
  suspects[0]->suspicion().Clear();
  const v1::Step rest = bench.Next();
  EXPECT_EQ(Ids(rest), (std::vector<uint64_t>{suspects[1]->id()}))
      << "who is cleared waits for the others";
  bench.Home(rest);
  const v1::Step second = bench.Next();
  EXPECT_EQ(Ids(second), (std::vector<uint64_t>{suspects[2]->id(), suspects[3]->id()}));
  bench.Home(second);
  for (Sequence* const suspect : suspects) suspect->suspicion().Clear();
  bench.Drain();
  for (const Sequence* const each : suspects) EXPECT_EQ(each->state(), SequenceState::kFinished);
  EXPECT_EQ(other->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().counters().preemptions, 0);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 64);
}

TEST(SuspectTest, TheSmallestGroupComesFirst) {
  Bench bench(SmallOptions());
  std::vector<Sequence*> suspects;
  for (int i = 0; i < 4; ++i) suspects.push_back(bench.Add(ToyJob(4, 1, i)));
  MakeSuspects(suspects);
  Suspicion::Interrupt({&suspects[2]->suspicion(), &suspects[3]->suspicion()});
  bench.Home(bench.Next());
  EXPECT_EQ(suspects[2]->state(), SequenceState::kFinished);
  bench.Home(bench.Next());
  EXPECT_EQ(suspects[3]->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.Next().slices_size(), 2);
}

TEST(SuspectTest, WhilePausedNoGroupBeginsAndWhoWaitedRunsOut) {
  Bench bench(SmallOptions());
  Sequence* const other = bench.Add(ToyJob(4, 3));
  bench.Home(bench.Next());
  std::vector<Sequence*> suspects;
  for (int i = 0; i < 4; ++i) suspects.push_back(bench.Add(ToyJob(4, 1, i + 1)));
  MakeSuspects(suspects);
  bench.Home(bench.Next());
  EXPECT_EQ(other->generated_tokens(), 1) << "it waited";
  while (!bench.scheduler().Idle()) bench.Home(bench.Next(/*admit=*/false));
  EXPECT_EQ(other->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().num_queued(), 2);
}

TEST(SuspectTest, OnlyThoseAreBlamedWhoDidNotWait) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* const other = bench.Add(ToyJob(4, 3));
  bench.Home(bench.Next());
  Sequence* const suspect = bench.Add(ToyJob(4, 1, 1));
  MakeSuspects({suspect});
  bench.Next();
  EXPECT_EQ(bench.scheduler().Release(), std::vector<Sequence*>{suspect});
  EXPECT_EQ(other->state(), SequenceState::kQueued);

  // While a step of its is under way, it may be the cause.
  Bench again(options);
  Sequence* const sent = again.Add(ToyJob(4, 3));
  again.Next();
  MakeSuspects({again.Add(ToyJob(4, 1, 1))});
  EXPECT_TRUE(again.NothingDue());
  EXPECT_EQ(again.scheduler().Release(), std::vector<Sequence*>{sent});
}

TEST(SuspectTest, AScoredPromptThatHadToGiveWayIsScoredWhole) {
  Scheduler::Options options = SmallOptions();
  options.kv_blocks = 6;
  Bench bench(options);
  JobSpec spec = ToyJob(14, 1);
  spec.score_prompt = true;
  Sequence* const scored = bench.Add(spec);
  bench.Home(bench.Next());
  ASSERT_FALSE(scored->preemptible());
  Sequence* const suspect = bench.Add(ToyJob(16, 1, 1));
  MakeSuspects({suspect});
  while (suspect->state() != SequenceState::kFinished) bench.Home(bench.Next());
  const v1::Step again = bench.Next();
  EXPECT_TRUE(Carries(again, scored));
  EXPECT_EQ(again.slices(0).first_position(), 0u);
}

/// Jobs over pipelines of two stages of which a step that carries certain ones never comes home.
class PoisonedCluster {
 public:
  PoisonedCluster() { Attach(); }

  JobHandle* Submit(const JobSpec& spec) {
    jobs_.push_back(MustSubmit(&driver_, spec));
    return jobs_.back().get();
  }

  /// Until no job is left; `fail` does with a step that carries one of `poison` what becomes of it.
  void Run(const std::set<uint64_t>& poison, const std::function<void(v1::Step)>& fail) {
    while (!driver_.List().empty()) {
      v1::Step step = pipelines_.back()->Take();
      const bool poisoned = std::any_of(
          step.slices().begin(), step.slices().end(),
          [&](const v1::SequenceSlice& slice) { return poison.contains(slice.sequence_id()); });
      if (poisoned) {
        ++failures_;
        fail(std::move(step));
      } else {
        ASSERT_TRUE(pipelines_.back()->Deliver(&driver_, std::move(step)).ok());
      }
    }
  }
  /// Steps that carried one of them.
  int failures() const { return failures_; }

  void Attach() {
    FakePipeline::Options options = Stages(2, pipelines_.size() + 1);
    options.kv_blocks = 1024;
    options.max_step_tokens = 256;
    pipelines_.push_back(std::make_unique<FakePipeline>(options));
    driver_.Attach(pipelines_.back()->Connect());
  }
  void LosePipeline(const absl::Status& why) {
    driver_.Detach(why);
    Attach();
  }
  FakePipeline& pipeline() { return *pipelines_.back(); }
  PipelineDriver& driver() { return driver_; }

 private:
  std::vector<std::unique_ptr<FakePipeline>> pipelines_;
  PipelineDriver driver_{SmallDriver()};
  int failures_ = 0;
  std::vector<std::unique_ptr<JobHandle>> jobs_;
};

using Fail = std::function<void(PoisonedCluster&, v1::Step)>;

void KillTheWorker(PoisonedCluster& cluster, const v1::Step&) {
  cluster.LosePipeline(absl::UnavailableError("worker b is gone"));
}
void FailTheStep(PoisonedCluster& cluster, v1::Step step) {
  step.clear_results();
  step.mutable_error()->set_code(static_cast<int>(absl::StatusCode::kDataLoss));
  step.mutable_error()->set_message("worker b is gone");
  ASSERT_TRUE(cluster.pipeline().Deliver(&cluster.driver(), std::move(step)).ok());
}

/// So many jobs, of which those at `places` are poison. Returns how often they struck.
int OnlyPoisonFails(int num_jobs, const std::set<int>& places, const Fail& fail) {
  PoisonedCluster cluster;
  cluster.driver().PauseAdmission();
  std::vector<JobSpec> specs;
  std::vector<JobHandle*> jobs;
  std::set<uint64_t> poison;
  for (int i = 0; i < num_jobs; ++i) {
    specs.push_back(ToyJob(4 + i % 5, 5, i));  // one chunk: who fails, fails in one step
    jobs.push_back(cluster.Submit(specs.back()));
    if (places.contains(i)) poison.insert(jobs.back()->id());
  }
  cluster.driver().ResumeAdmission();
  cluster.Run(poison, [&](v1::Step step) { fail(cluster, std::move(step)); });
  for (int i = 0; i < num_jobs; ++i) {
    const Outcome outcome = ReadToEnd(jobs[static_cast<size_t>(i)]);
    if (places.contains(i)) {
      EXPECT_THAT(std::string(outcome.status.message()),
                  AllOf(HasSubstr("times without a token between"), HasSubstr("worker b is gone")));
    } else {
      EXPECT_TRUE(outcome.status.ok()) << i << ": " << outcome.status;
      EXPECT_EQ(outcome.token_ids, kModel.Reply(specs[static_cast<size_t>(i)]));
    }
  }
  return cluster.failures();
}

/// Interruptions until one among so many is alone, and then until it fails.
int MostFailures(int num_jobs) {
  int failures = kSuspectInterruptions;
  for (int group = (num_jobs + 1) / 2; group > 1; group = (group + 1) / 2) ++failures;
  return failures + kMostAlone;
}

TEST(SuspectTest, AJobThatKillsAWorkerEachTimeTakesNobodyWithIt) {
  for (int place = 0; place < 5; ++place) {
    SCOPED_TRACE(place);
    EXPECT_LE(OnlyPoisonFails(5, {place}, KillTheWorker), MostFailures(5));
  }
}

TEST(SuspectTest, AJobWhoseStepsFailTakesNobodyWithIt) {
  for (int place = 0; place < 5; ++place) {
    SCOPED_TRACE(place);
    EXPECT_LE(OnlyPoisonFails(5, {place}, FailTheStep), MostFailures(5));
  }
}

TEST(SuspectTest, OneAmongManyIsFoundByHalving) {
  ASSERT_EQ(MostFailures(100), 2 + 6 + 3);  // 50, 25, 13, 7, 4, 2
  for (const int place : {0, 1, 49, 50, 77, 99}) {
    SCOPED_TRACE(place);
    EXPECT_LE(OnlyPoisonFails(100, {place}, KillTheWorker), MostFailures(100));
    EXPECT_LE(OnlyPoisonFails(100, {place}, FailTheStep), MostFailures(100));
  }
}

TEST(SuspectTest, SeveralAmongManyAreFoundOneAfterTheOther) {
  for (const std::set<int>& places : {std::set<int>{0, 1}, {3, 60}, {10, 50, 90}}) {
    const int most = static_cast<int>(places.size()) * MostFailures(100);
    EXPECT_LE(OnlyPoisonFails(100, places, KillTheWorker), most);
    EXPECT_LE(OnlyPoisonFails(100, places, FailTheStep), most);
  }
}

TEST(SuspectTest, WhereAllArePoisonAllFail) {
  std::set<int> all;
  for (int i = 0; i < 8; ++i) all.insert(i);
  OnlyPoisonFails(8, all, KillTheWorker);
}

TEST(SuspectTest, NobodyIsSuspectedForPlansThatMakeWayForOthers) {
  PoisonedCluster cluster;
  const JobSpec spec = ToyJob(6, 5);
  const JobSpec other_spec = ToyJob(7, 5, 1);
  JobHandle* const job = cluster.Submit(spec);
  for (int i = 0; i < kMostInterruptions; ++i) {
    cluster.pipeline().Take();
    cluster.LosePipeline(absl::AbortedError("the pipeline is being planned anew"));
  }
  cluster.pipeline().Take();
  cluster.driver().Detach(absl::AbortedError("the pipeline is being planned anew"));
  JobHandle* const other = cluster.Submit(other_spec);
  cluster.Attach();
  FakePipeline::Player player(&cluster.pipeline(), &cluster.driver());
  EXPECT_EQ(ReadToEnd(job).token_ids, kModel.Reply(spec));
  EXPECT_EQ(ReadToEnd(other).token_ids, kModel.Reply(other_spec));
  EXPECT_EQ(cluster.pipeline().max_slices_in_a_step(), 2);
}

}  // namespace
}  // namespace caravan
