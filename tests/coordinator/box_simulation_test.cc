// Simulations of real models on boxes, against what step_time says of the same in closed form.

#include "coordinator/box_simulation.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "cluster/box_planner.h"
#include "cluster/known_boxes.h"
#include "cluster/pipeline_plan.h"
#include "coordinator/sequence.h"
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

/// The simulation as it is described, with nothing remembered or left out to save time: each
/// stage's time of each step is foretold anew, all that is due is looked for, and sequences may be
/// suspects.
class PlainSimulation {
 public:
  PlainSimulation(const ModelConfig& config, const ModelCost& cost,
                  const std::vector<BoxStage>& stages, const DecodeLoad& load,
                  const Scheduler::Options& scheduling, const std::vector<SimulatedJob>& jobs)
      : config_(config),
        load_(load),
        jobs_(jobs),
        scheduler_(scheduling),
        sequences_(jobs.size()),
        link_free_(stages.size()),
        stage_free_(stages.size()) {
    for (const BoxStage& stage : stages) {
      costs_.push_back(cost.Of(stage.stage));
      boxes_.push_back(WithoutSteps(config, stage.stage, static_cast<int>(stages.size()),
                                    scheduling.prefill_chunk, *stage.box));
    }
    result_.jobs.resize(jobs.size());
    result_.busy_seconds.resize(stages.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (jobs[i].after < 0) due_.emplace(jobs[i].arrival_seconds, i);
    }
  }

  Simulation Run() {
    while (!due_.empty() || !on_way_.empty()) {
      if (!on_way_.empty() && (due_.empty() || on_way_.front().second <= due_.begin()->first)) {
        result_.seconds = on_way_.front().second;
        TakeHome();
      } else {
        result_.seconds = due_.begin()->first;
        Arrive(due_.begin()->second);
        due_.erase(due_.begin());
      }
      while (const std::optional<v1::Step> step = scheduler_.NextStep(/*admit=*/true)) Send(*step);
      result_.most_waiting = std::max<int64_t>(result_.most_waiting, scheduler_.num_queued());
    }
    result_.counters = scheduler_.counters();
    return result_;
  }

 private:
  void Arrive(size_t job) {
    result_.jobs[job].arrival_seconds = result_.seconds;
    JobSpec spec;
    spec.prompt.assign(static_cast<size_t>(jobs_[job].prompt_tokens), 0);
    spec.prompt.front() = static_cast<int32_t>(job + 1);
    spec.max_new_tokens = jobs_[job].reply_tokens;
    spec.priority = jobs_[job].priority;
    sequences_[job] =
        std::make_unique<Sequence>(job, std::move(spec), absl::Seconds(result_.seconds));
    result_.jobs[job].refused = !scheduler_.CheckFits(*sequences_[job]).ok();
    if (result_.jobs[job].refused) {
      End(job);
    } else {
      scheduler_.Enqueue(sequences_[job].get());
    }
  }

  void End(size_t job) {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (jobs_[i].after != static_cast<int>(job)) continue;
      due_.emplace(result_.seconds + jobs_[i].arrival_seconds, i);
    }
  }

  void Send(const v1::Step& step) {
    int64_t rows = 0;
    int64_t sampled = 0;
    int64_t attended = 0;
    for (const v1::SequenceSlice& slice : step.slices()) {
      for (int i = 0; i < slice.token_ids_size(); ++i) {
        ++rows;
        attended += slice.first_position() + i + 1;
      }
      sampled += slice.output() == v1::SLICE_OUTPUT_SAMPLE ? 1 : 0;
    }
    DecodeLoad load = load_;
    // In whole blocks.
    load.attended = kKvBlockTokens;
    while (load.attended < attended / rows) load.attended += kKvBlockTokens;
    load.sampled_share = static_cast<double>(sampled) / static_cast<double>(rows);
    double at = result_.seconds;
    for (size_t s = 0; s < boxes_.size(); ++s) {
      const double seconds =
          PredictStage(config_, costs_[s], boxes_[s], load, static_cast<double>(rows))->seconds;
      at = stage_free_[s] = std::max(at, stage_free_[s]) + seconds;
      result_.busy_seconds[s] += seconds;
      if (s + 1 < boxes_.size()) {
        at = link_free_[s] =
            std::max(at, link_free_[s]) +
            SendSeconds(config_, boxes_[s], boxes_[s + 1], static_cast<double>(rows));
        at += HopLatency(boxes_[s], boxes_[s + 1]);
      } else if (s > 0) {
        at += boxes_[s].network.latency_seconds;
      }
    }
    on_way_.emplace_back(step, at);
  }

  void TakeHome() {
    v1::Step step = on_way_.front().first;
    on_way_.pop_front();
    for (const v1::SequenceSlice& slice : step.slices()) {
      v1::SliceResult& result = *step.add_results();
      result.set_sequence_id(slice.sequence_id());
      if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) result.add_sampled();
    }
    const auto returned = scheduler_.TakeIn(step, absl::ZeroDuration());
    ASSERT_TRUE(returned.ok()) << returned.status();
    for (const Scheduler::ReturnedSlice& slice : *returned) {
      SimulatedOutcome& job = result_.jobs[slice.sequence->id()];
      result_.generated_tokens += slice.num_tokens;
      if (slice.num_tokens > 0 && job.first_token_seconds < 0) {
        job.first_token_seconds = result_.seconds;
      }
      if (slice.sequence->state() != SequenceState::kFinished) continue;
      job.end_seconds = result_.seconds;
      End(slice.sequence->id());
    }
  }

  const ModelConfig& config_;
  const DecodeLoad load_;
  const std::vector<SimulatedJob>& jobs_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<LayerCost> costs_;
  std::vector<Box> boxes_;
  std::set<std::pair<double, size_t>> due_;
  std::deque<std::pair<v1::Step, double>> on_way_;  // and when each is home
  std::vector<double> link_free_;
  std::vector<double> stage_free_;
  Simulation result_;
};

TEST_F(BoxSimulationTest, WhatIsRememberedChangesNothing) {
  int64_t preemptions = 0;
  int64_t waited = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto number = [&](int64_t least, int64_t most) {
      return std::uniform_int_distribution<int64_t>(least, most)(random);
    };
    // Some boxes alike, and some stages.
    const int num_layers = static_cast<int>(cost_.layers.size());
    std::vector<Box> kinds;
    for (const char* name : {"cpu", "3060", "4090"}) {
      Box& kind = kinds.emplace_back(FindBox(name).value());
      kind.network = FindPart<Box::Network>(number(0, 1) == 0 ? "1gbe" : "10gbe").value();
      kind.memory.bytes = number(200, 500) << 30;
      kind.disk.bytes = int64_t{1} << 42;
    }
    std::vector<BoxStage> stages;
    for (int first = 0; first < num_layers;) {
      const int end = std::min<int>(num_layers, first + static_cast<int>(number(1, 4)) * 8);
      stages.push_back(
          {&kinds[static_cast<size_t>(number(0, 2))], StageOf(first, end, num_layers)});
      first = end;
    }
    DecodeLoad load;
    load.jobs = number(1, 6);
    load.context_tokens = 1024;
    const int64_t chunk = number(1, 512);
    std::vector<SimulatedJob> jobs(40);
    for (int i = 0; i < 40; ++i) {
      SimulatedJob& job = jobs[static_cast<size_t>(i)];
      job.arrival_seconds = static_cast<double>(number(0, 300));
      job.after = i > 0 && number(0, 4) == 0 ? static_cast<int>(number(0, i - 1)) : -1;
      job.prompt_tokens = number(1, 700);
      job.reply_tokens = number(1, 120);
      if (number(0, 9) == 0) job.reply_tokens = number(1, 10'000);  // some never fit
      job.priority = number(0, 2) == 0 ? JobPriority::kBulk : JobPriority::kInteractive;
    }
    const auto pipeline = SimulateBoxes(model_->config(), cost_, stages, load, chunk);
    ASSERT_TRUE(pipeline.ok()) << pipeline.status();
    Scheduler::Options scheduling = pipeline->scheduling;
    scheduling.vocab_size = std::ssize(jobs) + 1;
    ASSERT_TRUE(scheduling.suspects);
    const Simulation plain =
        PlainSimulation(model_->config(), cost_, stages, load, scheduling, jobs).Run();
    const Simulation result = Simulate(*pipeline, jobs, kForever);
    for (size_t i = 0; i < jobs.size(); ++i) {
      EXPECT_EQ(result.jobs[i].arrival_seconds, plain.jobs[i].arrival_seconds) << i;
      EXPECT_EQ(result.jobs[i].first_token_seconds, plain.jobs[i].first_token_seconds) << i;
      EXPECT_EQ(result.jobs[i].end_seconds, plain.jobs[i].end_seconds) << i;
      EXPECT_EQ(result.jobs[i].refused, plain.jobs[i].refused) << i;
    }
    EXPECT_EQ(result.seconds, plain.seconds);
    EXPECT_EQ(result.generated_tokens, plain.generated_tokens);
    EXPECT_EQ(result.most_waiting, plain.most_waiting);
    EXPECT_EQ(result.busy_seconds, plain.busy_seconds);
    EXPECT_EQ(result.counters.steps, plain.counters.steps);
    EXPECT_EQ(result.counters.rows, plain.counters.rows);
    EXPECT_EQ(result.counters.preemptions, plain.counters.preemptions);
    EXPECT_EQ(result.counters.prefix_hit_tokens, plain.counters.prefix_hit_tokens);
    preemptions += result.counters.preemptions;
    waited += result.most_waiting;
  }
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(waited, 100);
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
