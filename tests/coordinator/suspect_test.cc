// A job that takes its pipeline down whenever it runs, and those beside it.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
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

TEST(SuspectTest, RunsAloneOnceAllStepsAreHomeAndOthersFollow) {
  Scheduler::Options options = SmallOptions();
  options.num_stages = 2;
  Bench bench(options);
  Sequence* const older = bench.Add(ToyJob(8, 4));
  const v1::Step under_way = bench.Next();
  Sequence* const suspect = bench.Add(ToyJob(4, 4, 1));
  suspect->set_suspect(true);
  Sequence* const younger = bench.Add(ToyJob(4, 4, 2));
  EXPECT_TRUE(bench.NothingDue()) << "a step is under way that others are in";
  EXPECT_EQ(older->state(), SequenceState::kQueued);
  bench.Home(under_way);
  const v1::Step alone = bench.Next();
  EXPECT_EQ(alone.slices_size(), 1);
  EXPECT_TRUE(Carries(alone, suspect));
  EXPECT_TRUE(bench.NothingDue());
  bench.Home(alone);
  EXPECT_TRUE(Carries(bench.Next(), suspect)) << "it is one until somebody says otherwise";

  suspect->set_suspect(false);
  const v1::Step together = bench.Next();
  EXPECT_TRUE(Carries(together, older));
  EXPECT_TRUE(Carries(together, younger));
  EXPECT_TRUE(suspect->running());
}

TEST(SuspectTest, SuspectsTakeTurnsByRankUntilTheyAreNoneAnyMore) {
  Bench bench(SmallOptions());
  Sequence* const other = bench.Add(ToyJob(4, 1));
  std::vector<Sequence*> suspects;
  for (int i = 0; i < 3; ++i) {
    suspects.push_back(bench.Add(ToyJob(4, 2, i + 1)));
    suspects.back()->set_suspect(true);
  }
  for (Sequence* const suspect : suspects) {
    const v1::Step step = bench.Next();
    EXPECT_EQ(step.slices_size(), 1);
    EXPECT_TRUE(Carries(step, suspect));
    EXPECT_EQ(bench.scheduler().num_running(), 1) << "whoever ran before has given way";
    bench.Home(step);
    EXPECT_EQ(suspect->generated_tokens(), 1);
    suspect->set_suspect(false);
  }
  bench.Drain();
  for (const Sequence* const each : suspects) EXPECT_EQ(each->state(), SequenceState::kFinished);
  EXPECT_EQ(other->state(), SequenceState::kFinished);
  EXPECT_EQ(bench.scheduler().blocks().free_blocks(), 64);
}

TEST(SuspectTest, AScoredPromptThatHadToGiveWayIsScoredWhole) {
  Bench bench(SmallOptions());
  JobSpec spec = ToyJob(14, 1);
  spec.score_prompt = true;
  Sequence* const scored = bench.Add(spec);
  bench.Home(bench.Next());
  ASSERT_FALSE(scored->preemptible());
  Sequence* const suspect = bench.Add(ToyJob(4, 1, 1));
  suspect->set_suspect(true);
  bench.Home(bench.Next());
  EXPECT_EQ(suspect->state(), SequenceState::kFinished);
  const v1::Step again = bench.Next();
  EXPECT_TRUE(Carries(again, scored));
  EXPECT_EQ(again.slices(0).first_position(), 0u);
}

/// Jobs over pipelines of two stages of which a step that carries a certain one never comes home.
class PoisonedCluster {
 public:
  PoisonedCluster() { Attach(); }

  JobHandle* Submit(const JobSpec& spec) {
    jobs_.push_back(MustSubmit(&driver_, spec));
    return jobs_.back().get();
  }

  /// Until no job is left; `fail` does with a step that carries `poison` what becomes of it.
  void Run(uint64_t poison, const std::function<void(v1::Step)>& fail) {
    while (!driver_.List().empty()) {
      v1::Step step = pipelines_.back()->Take();
      const bool poisoned = std::any_of(
          step.slices().begin(), step.slices().end(),
          [&](const v1::SequenceSlice& slice) { return slice.sequence_id() == poison; });
      if (poisoned) {
        fail(std::move(step));
      } else {
        ASSERT_TRUE(pipelines_.back()->Deliver(&driver_, std::move(step)).ok());
      }
    }
  }

  void Attach() {
    pipelines_.push_back(std::make_unique<FakePipeline>(Stages(2, pipelines_.size() + 1)));
    driver_.Attach(pipelines_.back()->Connect());
  }
  void LosePipeline(const absl::Status& why) {
    driver_.Detach(why);
    Attach();
  }
  FakePipeline& pipeline() { return *pipelines_.back(); }
  PipelineDriver& driver() { return driver_; }
  size_t plans() const { return pipelines_.size(); }

 private:
  std::vector<std::unique_ptr<FakePipeline>> pipelines_;
  PipelineDriver driver_{SmallDriver()};
  std::vector<std::unique_ptr<JobHandle>> jobs_;
};

/// Five jobs, of which the `place`-th is the poisonous one.
void OnlyThePoisonousJobFails(size_t place,
                              const std::function<void(PoisonedCluster&, v1::Step)>& fail) {
  SCOPED_TRACE(place);
  PoisonedCluster cluster;
  cluster.driver().PauseAdmission();
  std::vector<JobSpec> specs;
  std::vector<JobHandle*> jobs;
  for (int i = 0; i < 5; ++i) {
    specs.push_back(ToyJob(6 + i, 5, i));
    jobs.push_back(cluster.Submit(specs.back()));
  }
  cluster.driver().ResumeAdmission();
  cluster.Run(jobs[place]->id(), [&](v1::Step step) { fail(cluster, std::move(step)); });
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Outcome outcome = ReadToEnd(jobs[i]);
    if (i == place) {
      EXPECT_THAT(std::string(outcome.status.message()),
                  AllOf(HasSubstr("interrupted 5 times"), HasSubstr("worker b")));
    } else {
      EXPECT_TRUE(outcome.status.ok()) << i << ": " << outcome.status;
      EXPECT_EQ(outcome.token_ids, kModel.Reply(specs[i]));
    }
  }
}

TEST(SuspectTest, AJobThatKillsAWorkerEachTimeTakesNobodyWithIt) {
  for (size_t place = 0; place < 5; ++place) {
    OnlyThePoisonousJobFails(place, [](PoisonedCluster& cluster, const v1::Step&) {
      cluster.LosePipeline(absl::UnavailableError("worker b is gone"));
      ASSERT_LE(cluster.plans(), 1 + size_t{kMostInterruptions});
    });
  }
}

TEST(SuspectTest, AJobWhoseStepsFailTakesNobodyWithIt) {
  for (size_t place = 0; place < 5; ++place) {
    OnlyThePoisonousJobFails(place, [](PoisonedCluster& cluster, v1::Step step) {
      step.clear_results();
      step.mutable_error()->set_code(static_cast<int>(absl::StatusCode::kDataLoss));
      step.mutable_error()->set_message("worker b: short read");
      ASSERT_TRUE(cluster.pipeline().Deliver(&cluster.driver(), std::move(step)).ok());
    });
  }
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
