// Simulations whose results can be worked out on paper.

#include "coordinator/pipeline_simulation.h"

#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;

constexpr double kForever = std::numeric_limits<double>::infinity();

/// Stages that take a second a step whatever it is, and links that take no time.
SimulatedPipeline Pipeline(int num_stages) {
  SimulatedPipeline pipeline;
  pipeline.scheduling.plan_version = 1;
  pipeline.scheduling.num_stages = num_stages;
  pipeline.scheduling.kv_blocks = 1000;
  pipeline.scheduling.near_kv_blocks = 1000;
  pipeline.scheduling.kv_block_tokens = 64;
  pipeline.scheduling.max_step_tokens = 512;
  pipeline.scheduling.prefill_chunk = 512;
  pipeline.stage_seconds = [](int, const StepShape&) { return 1.0; };
  pipeline.send_seconds = [](int, int64_t) { return 0.0; };
  pipeline.latency_seconds = [](int) { return 0.0; };
  return pipeline;
}

TEST(PipelineSimulationTest, AJobAlonePassesAllStagesForEachToken) {
  SimulatedPipeline pipeline = Pipeline(3);
  pipeline.send_seconds = [](int, int64_t rows) { return rows == 100 ? 0.25 : 0.125; };
  pipeline.latency_seconds = [](int) { return 0.0625; };
  const Simulation result = Simulate(
      pipeline, {{.arrival_seconds = 10, .prompt_tokens = 100, .reply_tokens = 3}}, kForever);
  const double prompt = 3 + 2 * 0.25 + 3 * 0.0625;
  const double token = 3 + 2 * 0.125 + 3 * 0.0625;
  EXPECT_DOUBLE_EQ(result.jobs[0].first_token_seconds, 10 + prompt);
  EXPECT_DOUBLE_EQ(result.jobs[0].end_seconds, 10 + prompt + 2 * token);
  EXPECT_EQ(result.generated_tokens, 3);
  EXPECT_THAT(result.busy_seconds, Each(3.0));
}

TEST(PipelineSimulationTest, MicroBatchesFillAllStages) {
  // Three stages and three jobs: while each stage works on one, tokens come one a second.
  std::vector<SimulatedJob> jobs(3, {.prompt_tokens = 512, .reply_tokens = 101});
  const Simulation result = Simulate(Pipeline(3), jobs, kForever);
  EXPECT_DOUBLE_EQ(result.seconds, 3 + 2 + 100 * 3);
  EXPECT_EQ(result.counters.steps, 3 * 101);
  EXPECT_GT(result.busy_seconds[1] / result.seconds, 0.98);
}

TEST(PipelineSimulationTest, ChunksOfAPromptFollowEachOtherThroughTheStages) {
  const Simulation result =
      Simulate(Pipeline(4), {{.prompt_tokens = 3 * 512, .reply_tokens = 1}}, kForever);
  EXPECT_DOUBLE_EQ(result.jobs[0].end_seconds, 4 + 2);
}

TEST(PipelineSimulationTest, TheSlowestStageOrLinkBounds) {
  SimulatedPipeline pipeline = Pipeline(2);
  pipeline.stage_seconds = [](int stage, const StepShape&) { return stage == 0 ? 0.5 : 2.0; };
  std::vector<SimulatedJob> jobs(2, {.prompt_tokens = 512, .reply_tokens = 1001});
  EXPECT_THAT(Simulate(pipeline, jobs, kForever).seconds, DoubleNear(2 * 2002, 3));
  pipeline.send_seconds = [](int, int64_t) { return 3.0; };
  EXPECT_THAT(Simulate(pipeline, jobs, kForever).seconds, DoubleNear(2 * 3.0 * 1001, 10));
}

TEST(PipelineSimulationTest, StagesAreToldWhatAStepIs) {
  SimulatedPipeline pipeline = Pipeline(1);
  std::vector<std::pair<int64_t, int64_t>> shapes;
  pipeline.stage_seconds = [&shapes](int, const StepShape& step) {
    shapes.push_back({step.rows, step.attended_tokens});
    return 1.0;
  };
  Simulate(pipeline, {{.prompt_tokens = 515, .reply_tokens = 2}}, kForever);
  // Positions 1 to 512; 513 to 515; 516.
  EXPECT_THAT(shapes,
              ::testing::ElementsAre(std::pair(512, 256), std::pair(3, 514), std::pair(1, 516)));
}

TEST(PipelineSimulationTest, AJobMayComeAfterAnother) {
  const Simulation result = Simulate(
      Pipeline(1), {{.reply_tokens = 2}, {.arrival_seconds = 5, .after = 0, .reply_tokens = 1}},
      kForever);
  EXPECT_DOUBLE_EQ(result.jobs[0].end_seconds, 2);
  EXPECT_DOUBLE_EQ(result.jobs[1].arrival_seconds, 7);
  EXPECT_DOUBLE_EQ(result.jobs[1].end_seconds, 8);
}

TEST(PipelineSimulationTest, WhoNeverFitsIsRefusedAndWhoWaitsIsCounted) {
  SimulatedPipeline pipeline = Pipeline(1);
  pipeline.scheduling.kv_blocks = pipeline.scheduling.near_kv_blocks = 2;
  const std::vector<SimulatedJob> jobs = {{.prompt_tokens = 100, .reply_tokens = 29},
                                          {.prompt_tokens = 64, .reply_tokens = 1},
                                          {.prompt_tokens = 64, .reply_tokens = 1}};
  const Simulation result = Simulate(pipeline, jobs, kForever);
  EXPECT_TRUE(result.jobs[0].refused);
  EXPECT_LT(result.jobs[0].end_seconds, 0);
  EXPECT_DOUBLE_EQ(result.jobs[1].end_seconds, 1);
  EXPECT_DOUBLE_EQ(result.jobs[2].end_seconds, 2);
  EXPECT_EQ(result.most_waiting, 1);
}

TEST(PipelineSimulationTest, EndsWhenItIsToldTo) {
  const Simulation result = Simulate(Pipeline(1), {{.reply_tokens = 1000}}, 10.5);
  EXPECT_DOUBLE_EQ(result.seconds, 10);
  EXPECT_EQ(result.generated_tokens, 10);
  EXPECT_LT(result.jobs[0].end_seconds, 0);
}

TEST(PipelineSimulationTest, WaitsAreThoseOfTheQueueThatItIs) {
  // Prompts of a whole step and replies of one token, at random times: one server with a fixed
  // service time. Mean wait (Pollaczek and Khinchine): load / (2 (1 - load)) services.
  constexpr double kLoad = 0.7;
  std::mt19937_64 random(1);
  std::exponential_distribution<double> gap(kLoad);
  std::vector<SimulatedJob> jobs(200'000, {.prompt_tokens = 512, .reply_tokens = 1});
  double time = 0;
  for (SimulatedJob& job : jobs) job.arrival_seconds = time += gap(random);
  const Simulation result = Simulate(Pipeline(1), jobs, kForever);
  double waited = 0;
  for (const SimulatedOutcome& job : result.jobs) {
    waited += job.end_seconds - job.arrival_seconds - 1;
  }
  const double mean = waited / static_cast<double>(jobs.size());
  EXPECT_NEAR(mean, kLoad / (2 * (1 - kLoad)), 0.1);
  EXPECT_NEAR(result.busy_seconds[0] / result.seconds, kLoad, 0.01);
}

}  // namespace
}  // namespace caravan
