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

TEST(PlanTableTest, ShowsWhatWasForetold) {
  v1::GetStatusResponse status = Serving();
  EXPECT_THAT(FormatStatus(status), Not(HasSubstr("foretold")));
  v1::PlanForecast& forecast = *status.mutable_forecast();
  forecast.set_jobs(8);
  forecast.set_tokens_per_s(12.345);
  forecast.set_tokens_per_s_alone(3.5);
  forecast.set_slowest_worker_id(1);
  forecast.set_bottleneck("disk");
  EXPECT_THAT(FormatStatus(status), HasSubstr("\nforetold  12.35 tokens/s of 8 jobs, 3.50 of one "
                                              "alone; slowest: box-a, by its disk\n"));
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

TEST(PlanTableTest, ShowsHowFarTheNextPlanIs) {
  v1::GetStatusResponse status = Serving();
  v1::Preparation& preparation = *status.mutable_workers(0)->mutable_preparation();
  EXPECT_THAT(FormatStatus(status), HasSubstr("  ready, next 0%   "));
  preparation.mutable_progress()->set_total_bytes(4 * kGiB);
  preparation.mutable_progress()->set_loaded_bytes(3 * kGiB);
  EXPECT_THAT(FormatStatus(status), HasSubstr("  ready, next 75%  "));
  preparation.set_done(true);
  EXPECT_THAT(FormatStatus(status), HasSubstr("  ready, next ready  "));
  status.mutable_workers(0)->set_state(v1::WORKER_STATE_SPARE);
  EXPECT_THAT(FormatStatus(status), HasSubstr("  spare, next ready  "));
}

TEST(PlanTableTest, ShowsWhoIsHeldBackAndForHowLong) {
  v1::GetStatusResponse status = Serving();
  v1::WorkerStatus& held = *status.add_workers();
  held.set_state(v1::WORKER_STATE_SPARE);
  held.set_held_back_s(28.4);
  EXPECT_THAT(FormatStatus(status), ContainsRegex("  held 28 s +- "));
  held.set_drained(true);
  EXPECT_THAT(FormatStatus(status), ContainsRegex("  drained +- "));
}

TEST(PlanTableTest, NothingIsSaidOfHopsBetweenCpus) {
  v1::GetStatusResponse status = Serving();
  status.mutable_workers(0)->mutable_next()->set_neighbour("worker 2 (box-b)");
  EXPECT_THAT(FormatStatus(status), Not(HasSubstr("worker 2 (box-b)")));
}

TEST(PlanTableTest, ShowsWhatHasACardsMemoryAndHowItsHopsGo) {
  v1::GetStatusResponse status = Serving();
  status.mutable_workers(0)->mutable_next()->set_neighbour("worker 2 (box-b)");
  status.mutable_workers(0)->mutable_next()->set_why("worker 1 (box-a) has no card");
  v1::WorkerStatus& card = *status.add_workers();
  card = status.workers(0);
  card.set_worker_id(2);
  card.set_name("box-b");
  card.set_device("cuda:0 (NVIDIA GeForce RTX 3060)");
  card.set_on_card(true);
  card.set_memory_budget_bytes(11 * kGiB);
  card.set_card_bytes(10 * kGiB);
  card.set_loaded_bytes(7 * kGiB);
  card.set_expert_bytes(4 * kGiB);
  card.set_expert_slots(312);
  card.set_kv_bytes(2 * kGiB);
  card.mutable_next()->set_neighbour("worker 3 (box-c)");
  card.mutable_next()->set_by_nccl(true);
  card.mutable_next()->set_why("both have NCCL 2.28.9");
  card.mutable_load()->mutable_experts()->set_hits(9);
  card.mutable_load()->mutable_experts()->set_misses(1);
  std::string text = FormatStatus(status);
  EXPECT_THAT(text, ContainsRegex("box-b +10.0.0.1:7071 +cuda:0 +ready"));
  EXPECT_THAT(text, ContainsRegex("7.00 GiB, 312 of 7168 experts\n"));
  EXPECT_THAT(text, ContainsRegex("\n2 +cuda:0 .NVIDIA GeForce RTX 3060. +11.0 GiB +10.0 GiB "
                                  "+3.00 GiB +4.00 GiB +2.00 GiB +1.00 GiB +none yet\n"));
  EXPECT_THAT(text, ContainsRegex("\n1 +worker 2 .box-b. +TCP +worker 1 .box-a. has no card\n"));
  EXPECT_THAT(text, ContainsRegex("\n2 +worker 3 .box-c. +NCCL +both have NCCL 2.28.9\n"));

  v1::CardExpertLoad& load = *status.mutable_workers(1)->mutable_load()->mutable_card_experts();
  load.set_hits(60);
  load.set_copies(15);
  load.set_on_cpu(25);
  load.set_promotions(7);
  load.set_copied_bytes(3 * kGiB);
  EXPECT_THAT(FormatStatus(status),
              HasSubstr("60.0% on the card, 15.0% copied there, 25.0% by the CPU, 90.0% of those "
                        "two in memory, 7 promoted, 3.00 GiB copied\n"));

  status.mutable_workers(1)->set_expert_slots(0);
  status.mutable_workers(1)->mutable_load()->Clear();
  EXPECT_THAT(FormatStatus(status), HasSubstr(" all on the card\n"));
  status.mutable_workers(1)->set_state(v1::WORKER_STATE_LOADING);
  EXPECT_THAT(FormatStatus(status), ContainsRegex("RTX 3060. +11.0 GiB +- +- +- +- +- +-\n"));
}

}  // namespace
}  // namespace caravan
