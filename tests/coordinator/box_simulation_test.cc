// Simulations of real models on boxes, against what step_time says of the same in closed form.

#include "coordinator/box_simulation.h"

#include <limits>
#include <memory>
#include <vector>

#include "cluster/box_planner.h"
#include "cluster/known_boxes.h"
#include "gtest/gtest.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

constexpr double kForever = std::numeric_limits<double>::infinity();

class BoxSimulationTest : public ::testing::Test {
 protected:
  BoxSimulationTest() {
    SyntheticModel::Options shape;
    shape.config_path = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
    shape.types = {DType::kQ4_K, DType::kQ4_K};
    model_ = SyntheticModel::Create(shape).value();
    cost_ = CostOfStoredModel(*model_).value();
    box_ = FindBox("3060").value();
    box_.network = FindPart<Box::Network>("1gbe").value();
  }

  /// Of so many boxes, with the best plan for the load.
  std::vector<BoxStage> Plan(int num_boxes, const DecodeLoad& load) {
    boxes_ = {{box_, num_boxes}};
    return PlanBoxes(model_->config(), cost_, boxes_, load, PlanAim::kBulk).value();
  }

  std::unique_ptr<SyntheticModel> model_;
  ModelCost cost_;
  Box box_;
  std::vector<BoxCount> boxes_;
};

TEST_F(BoxSimulationTest, JobsThatOnlyDecodeGetWhatIsForetoldOfThem) {
  for (const int num_boxes : {1, 4, 12}) {
    for (const int num_jobs : {1, 8, 24}) {
      SCOPED_TRACE(testing::Message() << num_boxes << " boxes, " << num_jobs << " jobs");
      DecodeLoad load;
      load.jobs = num_jobs;
      load.context_tokens = 1024;
      load.attended = 256;  // in the mean of 512 tokens
      const std::vector<BoxStage> stages = Plan(num_boxes, load);
      // Its boxes have the memory that steps need besides.
      std::vector<Box> without_steps;
      for (const BoxStage& stage : stages) {
        without_steps.push_back(WithoutSteps(model_->config(), stage.stage,
                                             static_cast<int>(stages.size()), 512, *stage.box));
      }
      std::vector<BoxStage> beside = stages;
      for (size_t i = 0; i < beside.size(); ++i) beside[i].box = &without_steps[i];
      const auto foretold = PredictPipeline(model_->config(), cost_, beside, load);
      ASSERT_TRUE(foretold.ok()) << foretold.status();
      const auto pipeline = SimulateBoxes(model_->config(), cost_, stages, load, 512);
      ASSERT_TRUE(pipeline.ok()) << pipeline.status();
      const std::vector<SimulatedJob> jobs(static_cast<size_t>(num_jobs),
                                           {.prompt_tokens = 1, .reply_tokens = 512});
      const Simulation result = Simulate(*pipeline, jobs, kForever);
      const double simulated = static_cast<double>(result.generated_tokens) / result.seconds;
      EXPECT_NEAR(simulated / foretold->tokens_per_second, 1, 0.05);
    }
  }
}

TEST_F(BoxSimulationTest, APromptAloneTakesWhatIsForetoldOfIt) {
  DecodeLoad load;
  load.jobs = 8;
  load.context_tokens = 4096;
  const std::vector<BoxStage> stages = Plan(8, load);
  const auto foretold =
      PredictFirstToken(model_->config(), cost_, stages, load, /*prompt_tokens=*/2048, 512);
  ASSERT_TRUE(foretold.ok()) << foretold.status();
  load.decoding = 1;
  const auto pipeline = SimulateBoxes(model_->config(), cost_, stages, load, 512);
  ASSERT_TRUE(pipeline.ok()) << pipeline.status();
  const Simulation result =
      Simulate(*pipeline, {{.prompt_tokens = 2048, .reply_tokens = 1}}, kForever);
  EXPECT_NEAR(result.jobs[0].first_token_seconds / *foretold, 1, 0.05);
}

TEST_F(BoxSimulationTest, SaysWhatDoesNotFit) {
  DecodeLoad load;
  load.context_tokens = 1024;
  std::vector<BoxStage> stages = Plan(1, load);
  Box small = box_;
  small.disk.bytes = int64_t{1} << 30;
  stages[0].box = &small;
  EXPECT_EQ(SimulateBoxes(model_->config(), cost_, stages, load, 512).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace caravan
