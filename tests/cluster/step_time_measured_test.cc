// Predictions against what was measured of real stages on a card: the tables of
// docs/performance.md, "A stage on a card".

#include <memory>
#include <vector>

#include "cluster/known_boxes.h"
#include "cluster/step_time.h"
#include "gtest/gtest.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

/// Milliseconds a layer. A prompt is one chunk of a sequence, whose rows look back on half of it;
/// the others decode at position 1024.
struct Measured {
  int rows;
  bool is_prompt;
  double least;
  double most;
};

/// Four layers of R1's shape with 256 experts each, packed as 4bit.
class MeasuredStage {
 public:
  MeasuredStage() {
    SyntheticModel::Options shape;
    shape.config_path = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
    shape.types = {DType::kQ4_K, DType::kQ8_0};
    model_ = SyntheticModel::Create(shape).value();
    const ModelCost cost = CostOfStoredModel(*model_).value();
    StageSpec spec;
    spec.first_layer = 3;
    spec.end_layer = 7;
    stage_ = cost.Of(spec);
  }

  double MillisecondsALayer(const Box& box, const Measured& step) const {
    DecodeLoad load;
    load.jobs = step.is_prompt ? 1 : step.rows;
    load.context_tokens = 1024;
    if (step.is_prompt) load.attended = step.rows / 2;
    const auto time = PredictStage(model_->config(), stage_, box, load, step.rows);
    EXPECT_TRUE(time.ok()) << time.status();
    return time.ok() ? 1e3 * time->seconds / 4 : 0;
  }

 private:
  std::unique_ptr<SyntheticModel> model_;
  LayerCost stage_;
};

/// The machine that was measured: an H100, 16 cores and 128 GiB.
Box H100() {
  Box box = *FindBox("h200");
  box.card.read_bytes = 3.0e12;
  box.card.pcie_bytes = 53e9;
  box.card.bytes = 70 * kGiB;
  return box;
}

void ExpectWithin(const Box& box, const std::vector<Measured>& steps, double off) {
  const MeasuredStage stage;
  for (const Measured& step : steps) {
    const double foretold = stage.MillisecondsALayer(box, step);
    EXPECT_GT(foretold, (1 - off) * step.least) << step.rows << " rows";
    EXPECT_LT(foretold, (1 + off) * step.most) << step.rows << " rows";
  }
}

TEST(StepTimeMeasured, AllExpertsOnTheCard) {
  ExpectWithin(H100(),
               {{1, false, 0.318, 0.364},
                {8, false, 0.805, 0.858},
                {64, false, 2.78, 2.84},
                {256, false, 5.22, 5.63},
                {512, true, 8.41, 8.84}},
               0.10);
}

// Two runs, which were up to a quarter apart.
TEST(StepTimeMeasured, HalfOfTheExpertsOnTheCard) {
  Box box = H100();
  // 527 slots beside what is always active.
  box.card.bytes = 15 * kGiB - kGiB / 2;
  box.memory.bytes = 30 * kGiB;
  ExpectWithin(box,
               {{1, false, 1.49, 1.87},
                {8, false, 6.12, 7.16},
                {64, false, 25.9, 27.2},
                {256, false, 35.3, 40.2},
                {512, true, 43.7, 45.5}},
               0.20);
}

}  // namespace
}  // namespace caravan
