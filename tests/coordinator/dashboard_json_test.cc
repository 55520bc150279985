#include "coordinator/dashboard_json.h"

#include <string>

#include "coordinator/dashboard_files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::nlohmann::json;
using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

v1::WorkerStatus* AddWorker(DashboardInputs& inputs, uint32_t id, const std::string& name) {
  v1::WorkerStatus* worker = inputs.cluster.add_workers();
  worker->set_worker_id(id);
  worker->set_name(name);
  worker->set_memory_budget_bytes(1000);
  worker->set_state(v1::WORKER_STATE_SPARE);
  return worker;
}

void GiveStage(v1::WorkerStatus* worker, uint32_t first_layer, uint32_t end_layer) {
  worker->set_state(v1::WORKER_STATE_READY);
  worker->mutable_stage()->set_first_layer(first_layer);
  worker->mutable_stage()->set_end_layer(end_layer);
  worker->set_stage_bytes(400);
  worker->set_loaded_bytes(400);
  worker->set_kv_blocks(10);
  worker->set_kv_bytes(300);
}

void AddJob(DashboardInputs& inputs, uint64_t id, v1::JobState state) {
  v1::JobSummary& job = inputs.jobs.emplace_back();
  job.set_job_id(id);
  job.set_state(state);
}

TEST(DashboardJsonTest, BoxesAreInTheOrderOfTheRingThenTheSpareOnes) {
  DashboardInputs inputs;
  AddWorker(inputs, 1, "spare");
  GiveStage(AddWorker(inputs, 2, "last"), 5, 9);
  GiveStage(AddWorker(inputs, 3, "first"), 0, 5);
  const json data = DashboardJson(inputs);
  ASSERT_EQ(data["boxes"].size(), 3u);
  EXPECT_EQ(data["boxes"][0]["name"], "first");
  EXPECT_EQ(data["boxes"][0]["stage"]["end_layer"], 5);
  EXPECT_EQ(data["boxes"][1]["name"], "last");
  EXPECT_EQ(data["boxes"][2]["name"], "spare");
  EXPECT_EQ(data["boxes"][2]["stage"], nullptr);
  EXPECT_THAT(data["boxes"][2]["tiers"][0]["parts"], IsEmpty());
}

TEST(DashboardJsonTest, MemoryIsShownByWhatItHolds) {
  DashboardInputs inputs;
  GiveStage(AddWorker(inputs, 1, "box"), 0, 9);
  inputs.pipeline.kv_blocks_total = 10;
  inputs.pipeline.kv_blocks_used = 4;
  inputs.pipeline.kv_blocks_cached = 1;
  const json tier = DashboardJson(inputs)["boxes"][0]["tiers"][0];
  EXPECT_EQ(tier["tier"], "RAM");
  EXPECT_EQ(tier["total_bytes"], 1000);
  EXPECT_EQ(tier["parts"], json::parse(R"([{"what": "weights", "bytes": 400},
                                           {"what": "KV in use", "bytes": 120},
                                           {"what": "KV cached", "bytes": 30},
                                           {"what": "KV free", "bytes": 150}])"));
}

TEST(DashboardJsonTest, SlotsForExpertsAreApart) {
  DashboardInputs inputs;
  v1::WorkerStatus* const worker = AddWorker(inputs, 1, "box");
  GiveStage(worker, 0, 9);
  worker->set_stage_bytes(4000);
  worker->set_experts(50);
  worker->set_expert_slots(3);
  worker->set_expert_bytes(300);
  const json box = DashboardJson(inputs)["boxes"][0];
  EXPECT_EQ(box["weight_bytes"], 4000);
  EXPECT_EQ(box["experts"], 50);
  EXPECT_EQ(box["expert_slots"], 3);
  EXPECT_EQ(box["expert_hit_share"], nullptr);
  EXPECT_EQ(box["tiers"][0]["parts"], json::parse(R"([{"what": "weights", "bytes": 100},
                            {"what": "experts", "bytes": 300},
                            {"what": "KV in use", "bytes": 0},
                            {"what": "KV cached", "bytes": 0},
                            {"what": "KV free", "bytes": 300}])"));
}

TEST(DashboardJsonTest, HitsAreOfWorkersThatLeaveExpertsOnDisk) {
  DashboardInputs inputs;
  v1::WorkerStatus* const worker = AddWorker(inputs, 1, "box");
  GiveStage(worker, 0, 9);
  worker->mutable_load()->mutable_experts()->set_hits(3);
  worker->mutable_load()->mutable_experts()->set_misses(1);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["expert_hit_share"], nullptr);  // now all are there
  worker->set_expert_slots(3);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["expert_hit_share"], 0.75);
}

TEST(DashboardJsonTest, ACardShowsWhatStepsTakeAndWhereExpertsWereComputed) {
  DashboardInputs inputs;
  v1::WorkerStatus* const worker = AddWorker(inputs, 1, "box");
  GiveStage(worker, 0, 9);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["on_card"], false);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["card_experts"], nullptr);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["next_hop"], nullptr);
  worker->set_on_card(true);
  worker->set_card_bytes(750);  // of which 400 are weights and 300 the KV cache
  worker->set_expert_slots(3);
  worker->mutable_next()->set_neighbour("worker 2 (box-b)");
  worker->mutable_next()->set_by_nccl(true);
  worker->mutable_next()->set_why("both have NCCL 2.28.9");
  v1::CardExpertLoad& load = *worker->mutable_load()->mutable_card_experts();
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["card_experts"], nullptr);
  load.set_hits(5);
  load.set_copies(1);
  load.set_on_cpu(2);
  load.set_promotions(1);
  load.set_copied_bytes(4096);
  const json box = DashboardJson(inputs)["boxes"][0];
  EXPECT_EQ(box["on_card"], true);
  EXPECT_EQ(box["tiers"][0]["tier"], "VRAM");
  EXPECT_EQ(box["tiers"][0]["parts"].back(), json::parse(R"({"what": "steps", "bytes": 50})"));
  EXPECT_EQ(box["card_experts"],
            json::parse(R"({"hit_share": 0.625, "copied_share": 0.125, "on_cpu_share": 0.25,
                            "promotions": 1, "copied_bytes": 4096})"));
  EXPECT_EQ(box["next_hop"]["to"], "worker 2 (box-b)");
  EXPECT_EQ(box["next_hop"]["transport"], "NCCL");
  EXPECT_EQ(box["next_hop"]["why"], "both have NCCL 2.28.9");
}

TEST(DashboardJsonTest, LoadingIsOfWhatLoadingReads) {
  DashboardInputs inputs;
  v1::WorkerStatus* const worker = AddWorker(inputs, 1, "box");
  worker->set_state(v1::WORKER_STATE_LOADING);
  worker->mutable_stage()->set_end_layer(9);
  worker->set_stage_bytes(4000);
  worker->set_loaded_bytes(50);
  worker->set_load_bytes(100);
  EXPECT_EQ(DashboardJson(inputs)["boxes"][0]["loaded_share"], 0.5);
}

TEST(DashboardJsonTest, BusyIsOfTheNewestSample) {
  DashboardInputs inputs;
  GiveStage(AddWorker(inputs, 1, "a"), 0, 5);
  GiveStage(AddWorker(inputs, 2, "b"), 5, 9);
  inputs.history.resize(2);
  inputs.history[0].busy_shares = {{1, 0.1}, {2, 0.2}};
  inputs.history[1].busy_shares = {{1, 0.75}};
  const json data = DashboardJson(inputs);
  EXPECT_EQ(data["boxes"][0]["busy_share"], 0.75);
  EXPECT_EQ(data["boxes"][1]["busy_share"], nullptr);
}

TEST(DashboardJsonTest, HistoryIsColumnsWithGaps) {
  DashboardInputs inputs;
  inputs.now = absl::Seconds(100);
  inputs.window = absl::Seconds(300);
  inputs.history.resize(2);
  inputs.history[0].at = absl::Seconds(96);
  inputs.history[0].first_token_p50 = absl::Milliseconds(250);
  inputs.history[1].at = absl::Seconds(98);
  inputs.history[1].generated_tokens_per_s = 12.5;
  const json history = DashboardJson(inputs)["history"];
  EXPECT_EQ(history["window_s"], 300);
  EXPECT_EQ(history["age_s"], json({4.0, 2.0}));
  EXPECT_EQ(history["generated_tokens_per_s"], json({0.0, 12.5}));
  EXPECT_EQ(history["first_token_p50_s"], json({0.25, nullptr}));
}

TEST(DashboardJsonTest, ListsRunningJobsFirstAndNotTooMany) {
  DashboardInputs inputs;
  for (uint64_t id = 1; id <= 300; ++id) AddJob(inputs, id, v1::JOB_STATE_QUEUED);
  AddJob(inputs, 301, v1::JOB_STATE_RUNNING);
  const json jobs = DashboardJson(inputs)["jobs"];
  EXPECT_EQ(jobs["running"], 1);
  EXPECT_EQ(jobs["queued"], 300);
  ASSERT_EQ(jobs["listed"].size(), kMaxListedJobs);
  EXPECT_EQ(jobs["listed"][0]["id"], 301);
  EXPECT_EQ(jobs["listed"][1]["id"], 1);
}

TEST(DashboardFilesTest, NothingComesFromElsewhere) {
  EXPECT_THAT(DashboardFiles(), Contains(Field(&DashboardFile::name, "index.html")));
  for (const DashboardFile& file : DashboardFiles()) {
    const std::string text(file.contents);
    EXPECT_THAT(text, Not(HasSubstr("https://"))) << file.name;
    if (file.name == "index.html") {
      EXPECT_THAT(text, Not(HasSubstr(" style="))) << file.name;
    }
  }
}

}  // namespace
}  // namespace caravan
