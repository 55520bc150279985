// Whole pipelines of real processes against what is foretold of them: the runs of
// tests/data/pipelines.json, which `caravan bench plan` measured (docs/performance.md, "Pipelines
// as they were foretold"), by today's simulator and plan.

#include "cli/measured_pipelines.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr char kPath[] = CARAVAN_SOURCE_DIR "/tests/data/pipelines.json";

nlohmann::json ReadTable() { return ReadJsonFile(kPath).value(); }

/// All runs, and what is foretold of each.
class MeasuredPipelinesTest : public ::testing::Test {
 protected:
  MeasuredPipelinesTest() : measured_(PipelinesFromJson(ReadTable(), kPath).value()) {
    SyntheticModel::Options shape;
    shape.config_path = dir_.Write("config.json", measured_.config_json);
    shape.types = measured_.types;
    const auto model = SyntheticModel::Create(shape).value();
    const ModelCost cost = CostOfStoredModel(*model).value();
    EXPECT_EQ(cost.Of({0, model->config().num_hidden_layers, true, true}).weight_bytes,
              measured_.weight_bytes);
    const MeasuredPipelines steady = WithSteadyBoxes(measured_);
    for (const PipelineRun& run : steady.runs) {
      auto foretold = Foretell(model->config(), cost, run);
      EXPECT_TRUE(foretold.ok()) << run.name << ": " << foretold.status();
      foretold_.push_back(foretold.value_or(ForetoldRun()));
    }
  }

  const TempDir dir_;
  const MeasuredPipelines measured_;
  std::vector<ForetoldRun> foretold_;
};

/// A figure that misses its bound: where it lies, so that it does not go further off unseen.
struct Miss {
  double least;
  double most;
};

/// By run and figure. docs/performance.md says why each is there.
const std::map<std::string, Miss>& Misses() {
  static const auto* const misses = new std::map<std::string, Miss>{
      // A prompt's products take 8% longer than probes of like ones say, and this machine's moods
      // are not the probes'.
      {"in memory, 1 worker, 1 job: tokens/s", {1.10, 1.14}},
      {"in memory, 1 worker, 1 job: first token", {0.78, 0.82}},
      {"in memory, 1 worker, 1 job: first token by plan", {0.78, 0.82}},
      {"12.5 MB/s, 10 ms, 3 workers, 1 job: tokens/s", {1.09, 1.13}},
      {"12.5 MB/s, 10 ms, 3 workers, 1 job: first token", {0.82, 0.86}},
      {"12.5 MB/s, 10 ms, 3 workers, 1 job: first token by plan", {0.82, 0.86}},
      {"12.5 MB/s, 10 ms, 2 workers, 16 jobs: tokens/s", {1.09, 1.13}},
      // The plan's closed form is of jobs that all decode: it knows no prompts of other jobs
      // between two tokens, nor that jobs are not all there at once.
      {"12.5 MB/s, 10 ms, 2 workers, 4 jobs: a token by plan", {0.73, 0.77}},
      {"from disk, 2 workers, 4 jobs: a token by plan", {0.79, 0.83}},
      {"from disk, 3 workers, 4 jobs: a token by plan", {0.66, 0.70}},
      {"from disk, 3 workers, 16 jobs: a token by plan", {1.19, 1.23}},
  };
  return *misses;
}

void ExpectForetold(const std::string& figure, double foretold, double measured, double off,
                    std::vector<std::string>& missed) {
  const double ratio = foretold / measured;
  const auto miss = Misses().find(figure);
  if (miss != Misses().end()) {
    missed.push_back(figure);
    EXPECT_GT(ratio, miss->second.least) << figure;
    EXPECT_LT(ratio, miss->second.most) << figure;
    EXPECT_GT(std::abs(ratio - 1), off) << figure << ": it misses no more; strike it off the list";
    return;
  }
  EXPECT_GT(ratio, 1 - off) << figure;
  EXPECT_LT(ratio, 1 + off) << figure;
}

TEST_F(MeasuredPipelinesTest, AreForetoldWithinTenPercentAndLatenciesWithinFifteen) {
  std::vector<std::string> missed;
  double tokens_off = 0;
  for (size_t i = 0; i < measured_.runs.size(); ++i) {
    const PipelineRun& run = measured_.runs[i];
    const ForetoldRun& foretold = foretold_[i];
    const auto expect = [&](const char* what, double said, double found, double off) {
      ExpectForetold(absl::StrCat(run.name, ": ", what), said, found, off, missed);
    };
    expect("tokens/s", foretold.simulated.tokens_per_second, run.measured.tokens_per_second, 0.10);
    expect("first token", foretold.simulated.first_token_seconds, run.measured.first_token_seconds,
           0.15);
    expect("a token", foretold.simulated.seconds_per_token, run.measured.seconds_per_token, 0.15);
    expect("a token by plan", foretold.plan_seconds_per_token, run.measured.seconds_per_token,
           0.15);
    if (run.jobs.size() == 1) {
      expect("first token by plan", foretold.plan_first_token_seconds,
             run.measured.first_token_seconds, 0.15);
    }
    tokens_off +=
        std::abs(foretold.simulated.tokens_per_second / run.measured.tokens_per_second - 1);
  }
  EXPECT_EQ(missed.size(), Misses().size()) << "the list names runs that are not there";
  EXPECT_LT(tokens_off / static_cast<double>(measured_.runs.size()), 0.06) << "in the mean";
}

TEST_F(MeasuredPipelinesTest, AreOfAllKinds) {
  std::vector<int> workers(4);
  int disk = 0;
  int slow = 0;
  for (const PipelineRun& run : measured_.runs) {
    ASSERT_LE(run.stages.size(), 3u);
    ++workers[run.stages.size()];
    disk += std::any_of(run.stage_expert_slots.begin(), run.stage_expert_slots.end(),
                        [](int64_t slots) { return slots > 0; });
    slow += run.boxes.size() > 1 && run.boxes.front().network.bytes < 1e8;
  }
  EXPECT_GE(workers[1], 6);
  EXPECT_GE(workers[2], 6);
  EXPECT_GE(workers[3], 6);
  EXPECT_GE(disk, 6);
  EXPECT_GE(slow, 3);
}

// How many experts a box has room for, the plan and the workers count alike, but for those whose
// place the worker's process takes (52 MiB, worker/process_memory.h).
TEST_F(MeasuredPipelinesTest, HaveTheExpertSlotsThatAreForetold) {
  for (size_t i = 0; i < measured_.runs.size(); ++i) {
    const std::vector<int64_t>& said = foretold_[i].stage_expert_slots;
    const std::vector<int64_t>& found = measured_.runs[i].stage_expert_slots;
    ASSERT_EQ(said.size(), found.size());
    for (size_t stage = 0; stage < said.size(); ++stage) {
      EXPECT_NEAR(static_cast<double>(said[stage]), static_cast<double>(found[stage]), 3)
          << measured_.runs[i].name << ", stage " << stage + 1;
    }
  }
}

TEST_F(MeasuredPipelinesTest, ComeBackFromJson) {
  const nlohmann::json once = PipelinesToJson(measured_);
  const auto again = PipelinesFromJson(once, "again");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(PipelinesToJson(*again), once);
  EXPECT_EQ(once, ReadTable());
}

TEST(MeasuredPipelinesJsonTest, RefusesWhatIsNoTable) {
  const auto expect_refused = [](const nlohmann::json& json, const std::string& why) {
    const absl::Status status = PipelinesFromJson(json, "table").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  expect_refused(nlohmann::json::array(), "table");
  nlohmann::json table = ReadTable();
  table["version"] = 2;
  expect_refused(table, "version 1");
  table = ReadTable();
  table["runs"][0]["boxes"][0] = "none";
  expect_refused(table, "no box");
  table = ReadTable();
  table["runs"][0]["stages"][0] = {1, 6};
  expect_refused(table, "no pipeline");
  table = ReadTable();
  table["runs"][0]["jobs"][0] = {0, 8, 1};
  expect_refused(table, "too short");
  table = ReadTable();
  table["runs"][0].erase("measured");
  expect_refused(table, "measured");
}

}  // namespace
}  // namespace caravan
