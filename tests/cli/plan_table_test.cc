#include "cli/plan_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kGiB = uint64_t{1} << 30;

/// One box that serves with all of its weights in memory.
v1::GetStatusResponse Serving() {
  v1::GetStatusResponse status;
  status.set_model("/models/r1");
  status.set_pipeline_state("serving");
  status.set_plan_version(1);
  v1::WorkerStatus& worker = *status.add_workers();
  worker.set_worker_id(1);
  worker.set_name("box-a");
  worker.set_address("10.0.0.1:7071");
  worker.set_device("cpu");
  worker.set_state(v1::WORKER_STATE_READY);
  worker.mutable_stage()->set_end_layer(30);
  worker.mutable_stage()->set_embeds(true);
  worker.set_memory_budget_bytes(24 * kGiB);
  worker.set_stage_bytes(20 * kGiB);
  worker.set_loaded_bytes(20 * kGiB);
  worker.set_load_bytes(20 * kGiB);
  worker.set_experts(7168);
  worker.set_kv_blocks(512);
  worker.set_kv_block_tokens(64);
  return status;
}

TEST(PlanTableTest, NothingIsSaidOfExpertsThatAreAllInMemory) {
  const std::string text = FormatStatus(Serving());
  EXPECT_THAT(text, ContainsRegex("MEMORY +KV TOKENS\n"));
  EXPECT_THAT(text, ContainsRegex("embedding, 0\\.\\.29 +20.0 GiB +24.0 GiB +32768\n"));
  EXPECT_THAT(text, Not(HasSubstr("experts")));
}

TEST(PlanTableTest, ShowsWhatOfTheWeightsIsInMemory) {
  v1::GetStatusResponse status = Serving();
  v1::WorkerStatus& second = *status.add_workers();
  second = status.workers(0);
  second.set_name("box-b");
  second.set_stage_bytes(200 * kGiB);
  second.set_loaded_bytes(18 * kGiB);
  second.set_expert_slots(312);
  status.add_workers()->set_state(v1::WORKER_STATE_SPARE);
  std::string text = FormatStatus(status);
  EXPECT_THAT(text, ContainsRegex("KV TOKENS +WEIGHTS IN MEMORY\n"));
  EXPECT_THAT(text, ContainsRegex("box-a .* 32768 +all\n"));
  EXPECT_THAT(text, ContainsRegex("box-b .* 200 GiB .* 32768 +18.0 GiB, 312 of 7168 experts\n"));
  EXPECT_THAT(text, ContainsRegex("spare .* - +-\n"));

  v1::ExpertLoad& load = *status.mutable_workers(1)->mutable_load()->mutable_experts();
  EXPECT_THAT(FormatStatus(status), Not(HasSubstr("hits")));
  load.set_hits(614);
  load.set_misses(386);
  EXPECT_THAT(FormatStatus(status), HasSubstr("18.0 GiB, 312 of 7168 experts, 61.4% hits\n"));
  load.set_guesses(8);
  load.set_guesses_used(5);
  load.set_failovers(3);
  EXPECT_THAT(FormatStatus(status), HasSubstr("61.4% hits, 62.5% of guesses used, 3 bad reads\n"));

  v1::WorkerStatus& loading = *status.mutable_workers(1);
  loading.set_state(v1::WORKER_STATE_LOADING);
  loading.set_load_bytes(6 * kGiB);
  loading.set_loaded_bytes(3 * kGiB);
  text = FormatStatus(status);
  EXPECT_THAT(text, ContainsRegex("box-b .* loading 50% .* - +312 of 7168 experts\n"));
}

}  // namespace
}  // namespace caravan
