// Predictions against hand-made arithmetic, and against what must hold of any of them.

#include "cluster/step_time.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

/// R1's routing and widths.
ModelConfig R1() {
  ModelConfig config;
  config.hidden_size = 7168;
  config.moe_intermediate_size = 2048;
  config.n_routed_experts = 256;
  config.router.num_experts_per_tok = 8;
  config.num_attention_heads = 128;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  return config;
}

/// Experts of 20 MB, 8 of 256 a layer; nothing else.
LayerCost ExpertLayers(int num_layers) {
  LayerCost layer;
  layer.weight_bytes = 256 * int64_t{20'000'000};
  layer.expert_bytes = layer.weight_bytes;
  layer.num_experts = 256;
  layer.expert_slot_bytes = 20'000'000;
  layer.experts_per_token = 8;
  layer.active_bytes_per_token = 8 * int64_t{20'000'000};
  layer.flops_per_token = 2 * 8 * 3 * int64_t{7168} * 2048;
  LayerCost sum;
  for (int i = 0; i < num_layers; ++i) sum += layer;
  return sum;
}

/// As many layers of the model on each of `num_boxes` such boxes as nearly as can be.
std::vector<BoxStage> Even(const Box& box, int num_boxes, const ModelCost& cost) {
  const auto layers = static_cast<int>(cost.layers.size());
  std::vector<BoxStage> stages;
  for (int i = 0; i < num_boxes; ++i) {
    stages.push_back({&box, StageOf(layers * i / num_boxes, layers * (i + 1) / num_boxes, layers)});
  }
  return stages;
}

/// A disk of 1 GB/s, and all else as good as free.
Box DiskBox(int64_t memory_bytes) {
  Box box;
  box.name = "test";
  box.disk.read_bytes = 1e9;
  box.disk.bytes = int64_t{1} << 50;
  box.memory.bytes = memory_bytes;
  box.memory.read_bytes = 1e15;
  box.cpu.multiply_adds = 1e18;
  box.cpu.attention_multiply_adds = 1e18;
  return box;
}

TEST(StepTime, OneRowTouchesWhatItChooses) {
  EXPECT_DOUBLE_EQ(TouchedExperts(256, 8, 1), 8);
  EXPECT_DOUBLE_EQ(TouchedExperts(64, 6, 1), 6);
  EXPECT_EQ(TouchedExperts(0, 0, 3), 0);
}

TEST(StepTime, ManyRowsTouchAllAndNeverMore) {
  double before = 0;
  for (double rows = 1; rows <= 512; rows *= 2) {
    const double touched = TouchedExperts(256, 8, rows);
    EXPECT_GT(touched, before);
    EXPECT_LE(touched, std::min(256.0, 8 * rows));
    before = touched;
  }
  EXPECT_NEAR(before, 256, 256 * std::pow(31.0 / 32, 512) * 1.01);
}

// What others state as a rule of thumb: of a row's reads a 4th, an 8th, a 16th remain.
TEST(StepTime, RowsShareReads) {
  for (const auto& [rows, times] : {std::pair{128.0, 4.0}, {256.0, 8.0}, {512.0, 16.0}}) {
    const double shared = 8 / (TouchedExperts(256, 8, rows) / rows);
    EXPECT_NEAR(shared, times, 0.03 * times) << rows;  // 1 - (31/32)^128 is 0.983
  }
}

TEST(StepTime, HitsGrowFromNoneToAll) {
  for (const double touched : {0.0, 0.1, 0.9}) {
    EXPECT_EQ(HitRate(0, touched), 0);
    EXPECT_EQ(HitRate(1, touched), 1);
    EXPECT_EQ(HitRate(2, touched), 1);
    for (double share = 0.001; share <= 1; share += 0.001) {
      EXPECT_GT(HitRate(share, touched), HitRate(share - 0.001, touched)) << share;
    }
  }
  EXPECT_DOUBLE_EQ(HitRate(0.375, 0), (0.67 + 0.81) / 2);
}

// `caravan bench cache --synthetic layers=10,topic=..,rows=..`, lfu, with a quarter of the experts.
TEST(StepTime, MoreRowsHitWhatWasMeasured) {
  for (const auto& [rows, hits] :
       {std::pair{1.0, 0.67}, {4.0, 0.559}, {16.0, 0.457}, {32.0, 0.342}}) {
    EXPECT_NEAR(HitRate(0.25, TouchedExperts(256, 8, rows) / 256), hits, 0.05) << rows;
  }
}

TEST(StepTime, AStreamWaitsForTheDisk) {
  // Slots for a quarter, of which 32 pass experts on; the disk gives 50 experts a second.
  const LayerCost stage = ExpertLayers(2);
  const auto time = PredictStage(R1(), stage, DiskBox(128 * int64_t{20'000'000}), {}, 1);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->expert_slots, 128);
  EXPECT_DOUBLE_EQ(time->expert_share, 96.0 / 512);
  const double misses = 8 * (1 - HitRate(96.0 / 512, 8.0 / 256));
  EXPECT_NEAR(misses, 8 * 0.43, 0.2);
  EXPECT_NEAR(time->bytes_read, 2 * misses * 20e6, 1);
  EXPECT_NEAR(time->seconds, 2 * misses / 50, 1e-8);
  EXPECT_EQ(time->bottleneck, Bottleneck::kDisk);
}

TEST(StepTime, AScanHitsWhatItsSlotsHold) {
  const auto time =
      PredictStage(R1(), ExpertLayers(2), DiskBox(128 * int64_t{20'000'000}), {.jobs = 512}, 512);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_NEAR(time->bytes_read, (512 - 96) * 20e6, 512 * 20e6 * 1e-6);
}

// Where no expert is worth more than another, what is kept is hit, however many rows there are.
TEST(StepTime, EvenRoutingHitsWhatIsKept) {
  for (const double rows : {1.0, 512.0}) {
    DecodeLoad load = {.jobs = static_cast<int64_t>(rows)};
    load.routing = Routing::kEven;
    const auto time =
        PredictStage(R1(), ExpertLayers(2), DiskBox(128 * int64_t{20'000'000}), load, rows);
    ASSERT_TRUE(time.ok()) << time.status();
    const double touched = 2 * TouchedExperts(256, 8, rows);
    EXPECT_NEAR(time->bytes_read / (touched * 20e6), 1 - 96.0 / 512, 1e-9);
  }
}

// The card keeps the hottest experts, whatever memory there is below it.
TEST(StepTime, MoreMemoryLeavesTheCardItsUses) {
  Box box = DiskBox(128 * int64_t{20'000'000});
  box.cpu.multiply_adds = 1e11;
  box.card.count = 1;
  box.card.bytes = 128 * int64_t{20'000'000};
  box.card.read_bytes = 1e15;
  box.card.multiply_adds = 1e18;
  double read_before = 0;
  for (const int64_t slots : {128, 256, 384}) {
    box.memory.bytes = slots * 20'000'000;
    const auto time = PredictStage(R1(), ExpertLayers(2), box, {}, 1);
    ASSERT_TRUE(time.ok()) << time.status();
    EXPECT_EQ(time->expert_slots, 128 + slots);
    // Of the 512 experts the card keeps 96, and 32 pass through it; the CPU computes the others.
    const double by_cpu = 2 * 8 * (1 - HitRate(96.0 / 512, 8.0 / 256));
    EXPECT_NEAR(time->expert_seconds, by_cpu * 3 * 7168 * 2048 / 1e11 + 2 * (0.2e-3 + 2e-6), 1e-6);
    if (slots > 128) {
      EXPECT_LT(time->read_seconds, read_before);
    }
    read_before = time->read_seconds;
  }
}

// The head computes rows that a token is sampled after, and no others.
TEST(StepTime, AHeadComputesTheSampledRows) {
  Box box = DiskBox(100 * kGiB);
  box.cpu.multiply_adds = 1e9;
  LayerCost head;
  head.weight_bytes = head.active_bytes_per_token = 1000;
  head.flops_per_token = head.sampled_flops_per_token = int64_t{2} * 1'000'000;
  DecodeLoad load;
  const auto all = PredictStage(R1(), head, box, load, 100);
  load.sampled_share = 0.01;
  const auto one = PredictStage(R1(), head, box, load, 100);
  ASSERT_TRUE(all.ok() && one.ok());
  EXPECT_NEAR(all->seconds, 0.1, 1e-9);
  EXPECT_NEAR(one->seconds, 0.001, 1e-9);
}

// A step takes jobs / stages of them, rounded up: four jobs on three stages go two by two.
TEST(StepTime, MicroBatchesAreAsTheSchedulerMakesThem) {
  EXPECT_EQ(MicroBatches(3, {.jobs = 1}), 1);
  EXPECT_EQ(MicroBatches(3, {.jobs = 3}), 3);
  EXPECT_EQ(MicroBatches(3, {.jobs = 4}), 2);
  EXPECT_EQ(MicroBatches(3, {.jobs = 16}), 3);
  EXPECT_EQ(MicroBatches(1, {.jobs = 16}), 1);
}

TEST(StepTime, AChunkOfAPromptMeetsAWholeChunkBetweenItsReads) {
  const LayerCost stage = ExpertLayers(2);
  const Box box = DiskBox(128 * int64_t{20'000'000});
  const auto of_one_job = PredictStage(R1(), stage, box, {.jobs = 1}, 512);
  const auto of_many = PredictStage(R1(), stage, box, {.jobs = 512}, 512);
  ASSERT_TRUE(of_one_job.ok() && of_many.ok());
  EXPECT_DOUBLE_EQ(of_one_job->bytes_read, of_many->bytes_read);
}

TEST(StepTime, ChunksOfPromptsGrowUntilComputingTakesAsLongAsReading) {
  ModelCost cost;
  cost.layers.assign(4, ExpertLayers(1));
  Box box = DiskBox(128 * int64_t{20'000'000});
  // A layer with experts takes 256 * 7/8 reads at 50 a second: 4.48 s. A row's 8 experts of
  // 3 * 7168 * 2048 multiply-adds take 1 / 100 s at this rate, so that 448 rows take as long.
  box.memory.read_bytes = 1e15;
  box.cpu.multiply_adds = 100.0 * 8 * 3 * 7168 * 2048;
  const auto time = PredictPrompts(R1(), cost, Even(box, 1, cost), {.context_tokens = 8192});
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->chunk_tokens, 512);
  EXPECT_EQ(time->slowest.bottleneck, Bottleneck::kArithmetic);
  // Two boxes have a chunk each; twice the slots leave less to read.
  const auto two = PredictPrompts(R1(), cost, Even(box, 2, cost), {.context_tokens = 8192});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->chunk_tokens, 512);
  EXPECT_NEAR(two->tokens_per_second / time->tokens_per_second, 2, 0.1);
  box.cpu.multiply_adds *= 1e6;
  box.memory.bytes *= 4;  // for the rows of the largest chunk
  const auto fast = PredictPrompts(R1(), cost, Even(box, 1, cost), {.context_tokens = 8192});
  ASSERT_TRUE(fast.ok()) << fast.status();
  EXPECT_EQ(fast->chunk_tokens, kMostPromptChunk);
  EXPECT_EQ(fast->slowest.bottleneck, Bottleneck::kDisk);
  box.cpu.multiply_adds /= 1e9;
  const auto slow = PredictPrompts(R1(), cost, Even(box, 1, cost), {.context_tokens = 8192});
  ASSERT_TRUE(slow.ok()) << slow.status();
  EXPECT_EQ(slow->chunk_tokens, kLeastPromptChunk);
}

TEST(StepTime, NoChunkIsLongerThanThePrompts) {
  ModelCost cost;
  cost.layers.assign(4, ExpertLayers(1));
  const Box box = DiskBox(128 * int64_t{20'000'000});
  const auto time = PredictPrompts(R1(), cost, Even(box, 1, cost), {.context_tokens = 300});
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->chunk_tokens, 256);
  EXPECT_EQ(time->slowest.bottleneck, Bottleneck::kDisk);
}

TEST(StepTime, ChunksOfPromptsGrowUntilReadingMemoryIsLittle) {
  ModelCost cost;
  cost.layers.assign(1, ExpertLayers(1));
  Box box = DiskBox(2000 * int64_t{20'000'000});
  // All is in memory; to read it takes 1 s, and so does the arithmetic of 100 rows.
  box.memory.read_bytes = 256 * 20e6;
  box.cpu.multiply_adds = 100.0 * 8 * 3 * 7168 * 2048;
  const auto time = PredictPrompts(R1(), cost, Even(box, 1, cost), {.context_tokens = 8192});
  ASSERT_TRUE(time.ok()) << time.status();
  // 8192 rows take 82.92 s, 1024 take 11.24, 512 take 6.12: 99, 91 and 84 rows a second.
  EXPECT_EQ(time->chunk_tokens, 1024);
  EXPECT_EQ(time->slowest.bottleneck, Bottleneck::kArithmetic);
  // A prompt that is alone comes soonest with the fewest reads.
  const auto first =
      PredictSoonestFirstToken(R1(), cost, Even(box, 1, cost), {.context_tokens = 8192}, 4000);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->chunk_tokens, 4096);
  EXPECT_NEAR(first->seconds, 1 + 40, 1);
  // Of several boxes the others wait for the first chunk.
  cost.layers.assign(8, ExpertLayers(1));
  const auto row =
      PredictSoonestFirstToken(R1(), cost, Even(box, 8, cost), {.context_tokens = 8192}, 4000);
  ASSERT_TRUE(row.ok()) << row.status();
  // With n chunks (8 + n - 1) * (1 + 40 / n) s: 95.1 for 8, 85.8 for 16, 91.5 for 32.
  EXPECT_EQ(row->chunk_tokens, 256);
}

TEST(StepTime, NothingIsReadWhereAllIsInMemory) {
  Box box = DiskBox(100 * kGiB);
  box.disk.read_bytes = 1;
  for (const double rows : {1.0, 512.0}) {
    const auto time = PredictStage(R1(), ExpertLayers(2), box, {}, rows);
    ASSERT_TRUE(time.ok()) << time.status();
    EXPECT_EQ(time->bytes_read, 0);
    EXPECT_NE(time->bottleneck, Bottleneck::kDisk);
  }
}

TEST(StepTime, MemoryBoundsOneRowAndArithmeticMany) {
  Box box = DiskBox(100 * kGiB);
  box.memory.read_bytes = 10e9;
  box.cpu.multiply_adds = 100e9;
  const auto one = PredictStage(R1(), ExpertLayers(1), box, {}, 1);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->bottleneck, Bottleneck::kMemory);
  // Its products, and what eight networks write and read of its activations.
  const double a_row =
      8.0 * 3 * 7168 * 2048 / 100e9 + 8.0 * (3 * 7168 + 4 * 2048) * sizeof(float) / 10e9;
  EXPECT_NEAR(one->seconds, 8 * 20e6 / 10e9 + a_row, 1e-9);
  const auto many = PredictStage(R1(), ExpertLayers(1), box, {.jobs = 512}, 512);
  ASSERT_TRUE(many.ok()) << many.status();
  EXPECT_EQ(many->bottleneck, Bottleneck::kArithmetic);
  EXPECT_NEAR(many->seconds, TouchedExperts(256, 8, 512) * 20e6 / 10e9 + 512 * a_row, 1e-9);
}

TEST(StepTime, AttentionHasARateOfItsOwn) {
  Box box = DiskBox(100 * kGiB);
  box.cpu.attention_multiply_adds = 1e9;
  LayerCost stage = ExpertLayers(1);
  stage.kv_values_per_token = 576;
  const DecodeLoad load = {.jobs = 4, .context_tokens = 1000};
  const auto time = PredictStage(R1(), stage, box, load, 4);
  ASSERT_TRUE(time.ok()) << time.status();
  // Each of 128 heads: scores over 576 values, sums over 512; 128 values into the latent space of
  // 512 and 128 out of it.
  EXPECT_NEAR(time->always_seconds, 4 * 128 * (1000.0 * (576 + 512) + 512 * 256) / 1e9, 1e-6);
  EXPECT_EQ(time->bottleneck, Bottleneck::kArithmetic);
}

// Not by the experts alone: here they wait for memory, for far less time than attention computes.
TEST(StepTime, TheBottleneckIsThatOfAllThatComputes) {
  Box box = DiskBox(100 * kGiB);
  box.memory.read_bytes = 100e9;
  LayerCost stage = ExpertLayers(1);
  stage.kv_values_per_token = 576;
  const DecodeLoad load = {.jobs = 4, .context_tokens = 1000};
  for (const auto& [rate, bottleneck] :
       {std::pair{1e9, Bottleneck::kArithmetic}, {1e15, Bottleneck::kMemory}}) {
    box.cpu.attention_multiply_adds = rate;
    const auto time = PredictStage(R1(), stage, box, load, 4);
    ASSERT_TRUE(time.ok()) << time.status();
    EXPECT_EQ(time->bottleneck, bottleneck) << rate;
  }
  // What is on the card counts too.
  box.cpu.attention_multiply_adds = 1e15;
  box.card.count = 1;
  box.card.bytes = 50 * kGiB;
  box.card.read_bytes = 1e15;
  box.card.multiply_adds = 1e9;
  const auto time = PredictStage(R1(), stage, box, load, 4);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->bottleneck, Bottleneck::kArithmetic);
}

TEST(StepTime, TheKvCacheTakesSlots) {
  LayerCost stage = ExpertLayers(1);
  stage.kv_values_per_token = 576;
  const DecodeLoad load = {.jobs = 10, .context_tokens = 1000};
  const auto time = PredictStage(R1(), stage, DiskBox(10 * 20'000'000 + 576 * 2 * 10'000), load, 1);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->expert_slots, 10);
}

TEST(StepTime, ABoxThatIsTooSmallSaysWhatItLacks) {
  const auto time = PredictStage(R1(), ExpertLayers(1), DiskBox(8 * 20'000'000 - kGiB), {}, 1);
  EXPECT_EQ(time.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(time.status().message()), HasSubstr("lack 1.00 GiB of memory"));
}

ModelCost Model(int num_layers) {
  ModelCost cost;
  for (int i = 0; i < num_layers; ++i) cost.layers.push_back(ExpertLayers(1));
  return cost;
}

TEST(StepTime, BoxesReadSideBySide) {
  // No slots to speak of, so that more boxes hold no more.
  const Box box = DiskBox(8 * 20'000'000);
  const auto one = PredictPipeline(R1(), Model(6), Even(box, 1, Model(6)), {.jobs = 512});
  const auto three = PredictPipeline(R1(), Model(6), Even(box, 3, Model(6)), {.jobs = 3 * 512});
  ASSERT_TRUE(one.ok() && three.ok()) << one.status() << three.status();
  EXPECT_DOUBLE_EQ(three->rows, 512);
  EXPECT_GT(three->tokens_per_second, 3 * one->tokens_per_second);
  // More slots in all are what is above 3.
  EXPECT_LT(three->tokens_per_second, 3.2 * one->tokens_per_second);
}

TEST(StepTime, OneJobPassesBoxAfterBox) {
  Box box = DiskBox(8 * 20'000'000);
  box.network.latency_seconds = 0.5;
  const auto one = PredictPipeline(R1(), Model(4), Even(box, 1, Model(4)), {});
  const auto two = PredictPipeline(R1(), Model(4), Even(box, 2, Model(4)), {});
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  const double hops = 2 * 0.5;
  EXPECT_GT(1 / two->tokens_per_second, hops);
  EXPECT_LT(1 / two->tokens_per_second, 1 / one->tokens_per_second + hops);
}

TEST(StepTime, AStageThatDoesNotFitIsNamed) {
  const Box box = DiskBox(0);
  const auto time = PredictPipeline(R1(), Model(4), Even(box, 2, Model(4)), {});
  EXPECT_THAT(std::string(time.status().message()), HasSubstr("layers 0..1"));
}

TEST(StepTime, ADiskThatIsTooSmallSaysWhatItLacks) {
  Box box = DiskBox(100 * kGiB);
  box.disk.bytes = 256 * int64_t{20'000'000} - kGiB;
  const auto time = PredictStage(R1(), ExpertLayers(1), box, {}, 1);
  EXPECT_EQ(time.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(time.status().message()), HasSubstr("lack 1.00 GiB of disk"));
}

/// All experts in memory; a CPU that computes 100 rows of a layer a second, a card that computes
/// as good as at once.
Box CardBox(double pcie_bytes) {
  Box box = DiskBox(100 * kGiB);
  box.cpu.multiply_adds = 100.0 * 8 * 3 * 7168 * 2048;
  box.card.count = 1;
  box.card.read_bytes = 1e15;
  box.card.multiply_adds = 1e18;
  box.card.pcie_bytes = pcie_bytes;
  return box;
}

TEST(StepTime, CpuAndCardShareWhatLiesInMemory) {
  // The CPU would take 4 s for 400 rows, and so would copying all 256 experts.
  const Box box = CardBox(256 * 20e6 / 4);
  const auto time = PredictStage(R1(), ExpertLayers(1), box, {.jobs = 400}, 400);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_NEAR(time->expert_seconds, 2, 2e-3);
  const auto alone = PredictStage(R1(), ExpertLayers(1), CardBox(0), {.jobs = 400}, 400);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_NEAR(alone->expert_seconds, 4, 2e-3);
}

TEST(StepTime, CopiesReadTheSameMemoryAsTheCpu) {
  Box box = CardBox(1e12);
  box.memory.read_bytes = 256 * 20e6 / 3;
  const auto time = PredictStage(R1(), ExpertLayers(1), box, {.jobs = 400}, 400);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_NEAR(time->expert_seconds, 3, 5e-3);
  EXPECT_EQ(time->bottleneck, Bottleneck::kMemory);
}

TEST(StepTime, TheCardComputesWhatIsCopiedToIt) {
  // Of 400 rows the card, as fast as the CPU, takes half.
  Box box = CardBox(1e12);
  box.card.multiply_adds = box.cpu.multiply_adds;
  const auto time = PredictStage(R1(), ExpertLayers(1), box, {.jobs = 400}, 400);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_NEAR(time->expert_seconds, 2, 2e-3);
  EXPECT_EQ(time->bottleneck, Bottleneck::kArithmetic);
}

TEST(StepTime, TiersHoldWhatTheyAreSaidTo) {
  Box box = DiskBox(30 * int64_t{20'000'000} + 10);
  box.card.count = 2;
  box.card.bytes = 10 * int64_t{20'000'000};
  LayerCost stage = ExpertLayers(1);
  stage.weight_bytes += 5 * int64_t{20'000'000};  // always active
  const auto time = PredictStage(R1(), stage, box, {}, 1);
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->tiers.card_fixed_bytes, 5 * int64_t{20'000'000});
  EXPECT_EQ(time->tiers.card_expert_bytes, 15 * int64_t{20'000'000});
  EXPECT_EQ(time->tiers.memory_fixed_bytes, 0);
  EXPECT_EQ(time->tiers.memory_expert_bytes, 30 * int64_t{20'000'000});
  EXPECT_EQ(time->tiers.disk_bytes, 261 * int64_t{20'000'000});
}

TEST(StepTime, ASlowNetworkIsTheBottleneck) {
  Box box = DiskBox(100 * kGiB);
  box.network.bytes = 1e6;
  const auto time = PredictPipeline(R1(), Model(4), Even(box, 2, Model(4)), {.jobs = 100});
  ASSERT_TRUE(time.ok()) << time.status();
  EXPECT_EQ(time->slowest.bottleneck, Bottleneck::kNetwork);
  // Two micro-batches of 50 rows of 7168 floats, one after the other.
  EXPECT_NEAR(time->seconds_per_token, 2 * 50 * 7168 * 4 / 1e6, 1e-6);
  ASSERT_EQ(time->stages.size(), 2u);
  EXPECT_EQ(time->stages[1].send_seconds, 0);
}

TEST(StepTime, OneOfManyJobsMayDecodeAlone) {
  LayerCost stage = ExpertLayers(1);
  stage.kv_values_per_token = 576;
  const DecodeLoad all = {.jobs = 10, .context_tokens = 1000};
  DecodeLoad one = all;
  one.decoding = 1;
  ModelCost cost;
  cost.layers = {stage};
  const Box box = DiskBox(50 * int64_t{20'000'000});
  const auto alone = PredictPipeline(R1(), cost, Even(box, 1, cost), one);
  const auto together = PredictPipeline(R1(), cost, Even(box, 1, cost), all);
  ASSERT_TRUE(alone.ok() && together.ok());
  EXPECT_EQ(alone->slowest.expert_slots, together->slowest.expert_slots);
  EXPECT_EQ(alone->rows, 1);
  EXPECT_EQ(together->rows, 10);
  EXPECT_LT(alone->seconds_per_token, together->seconds_per_token);
}

TEST(StepTime, TheChunksOfAPromptFollowEachOther) {
  ModelCost cost;
  cost.layers.assign(2, ExpertLayers(1));
  Box box = DiskBox(300 * int64_t{20'000'000});
  box.network.latency_seconds = 0.125;
  box.cpu.multiply_adds = 100.0 * 8 * 3 * 7168 * 2048;
  // Two layers of 250 rows each, a hop and the way home; behind the first chunk three more.
  const auto seconds =
      PredictFirstToken(R1(), cost, Even(box, 2, cost), {.context_tokens = 8192}, 1000, 256);
  ASSERT_TRUE(seconds.ok()) << seconds.status();
  EXPECT_NEAR(*seconds, 2 * 2.5 + 2 * 0.125 + 3 * 2.5, 1e-3);
}

}  // namespace
}  // namespace caravan
