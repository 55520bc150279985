#include "model/step_memory.h"

#include "gtest/gtest.h"
#include "tests/model/published_configs.h"

namespace caravan {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kRowBytes = 7168 * 4;

TEST(StepMemoryTest, CountsR1) {
  const ModelConfig config = *ParseModelConfig(DeepSeekR1Config().dump(), "config.json");
  const StepMemory memory = ComputeStepMemory(config, 512);
  EXPECT_EQ(LayerWorkspaceBytesPerRow(config),
            4 * (2 * 7168 + 1536 + 128 * (192 + 128) + 576 + 256 + 2 * 8));
  // Hidden states, workspace and guesses: 127 MiB. Then o_proj's input, attention, networks of
  // 18432, and products of experts that wait.
  const int64_t scratch = 512 * 16384 * 2 + 128 * 128 * (576 + 512) * 4 +
                          512 * (7168 * 2 + 18432 * 6) + 2048 * kRowBytes;
  EXPECT_EQ(LookaheadBytes(config), 32 * 4 * (7168 + 256 + 2 * 8));
  EXPECT_EQ(memory.layers, 512 * (kRowBytes + LayerWorkspaceBytesPerRow(config)) +
                               LookaheadBytes(config) + scratch);
  EXPECT_EQ((memory.layers - scratch) / kMiB, 127);
  EXPECT_EQ(scratch / kMiB, 201);
  EXPECT_EQ(memory.head, 16 * (129280 * 4 + kRowBytes));
  EXPECT_EQ(memory.drafting, 4 * 512 * kRowBytes);
  EXPECT_EQ(memory.activations, 512 * kRowBytes);
}

TEST(StepMemoryTest, CountsR1OnACard) {
  const ModelConfig config = *ParseModelConfig(DeepSeekR1Config().dump(), "config.json");
  const StepMemory memory = ComputeCardStepMemory(config, 512, 64);
  const StepMemory cpu = ComputeStepMemory(config, 512);
  // Steps wait in the host's memory; ids that are embedded are copied to the card.
  EXPECT_EQ(memory.activations, 0);
  // Summaries of 16 rows of logits, and what is asked of them.
  EXPECT_EQ(memory.head, cpu.head + 16 * (1072 + 16));
  EXPECT_EQ(memory.drafting, cpu.drafting + 512 * 4);
  const CudaBackendLimits limits = CudaLimits(config, 512, 64);
  EXPECT_EQ(limits.max_cols, 16384);
  EXPECT_EQ(limits.ffn.dense_inter, 18432);
  EXPECT_EQ(limits.max_kv_blocks, 512 * (163840 / 64));
  // Any row of the longest context has room.
  EXPECT_GE(limits.attention_scratch_bytes, 128 * (5 * 576 + 512 * 160) * 4);
  // A twentieth of a 12 GB card.
  EXPECT_EQ(memory.layers / kMiB, 672);
}

TEST(StepMemoryTest, AStageTakesWhatItDoes) {
  const StepMemory memory = {
      .layers = 1000, .head = 100, .drafting = 10, .activations = 1, .hops = 20000};
  EXPECT_EQ(memory.Of({0, 5, true, true}, 1), 1100);  // no activations go in or out
  EXPECT_EQ(memory.Of({0, 5, true, false}, 3), 21005);
  EXPECT_EQ(memory.Of({5, 9, false, false}, 3), 21005);
  EXPECT_EQ(memory.Of({9, 12, false, true, true}, 3), 21115);
}

TEST(StepMemoryTest, AStageOnACardHasSlotsAndTwoHopsByNccl) {
  const ModelConfig config = *ParseModelConfig(DeepSeekR1Config().dump(), "config.json");
  const StepMemory memory = ComputeCardStepMemory(config, 512, 64);
  EXPECT_EQ(memory.activations, 0);
  EXPECT_EQ(memory.hops, 3 * 512 * kRowBytes + 36 * kMiB);
}

TEST(StepMemoryTest, AModelWithoutSizesTakesNothing) {
  EXPECT_EQ(ComputeStepMemory(ModelConfig(), 512).layers, 0);
}

}  // namespace
}  // namespace caravan
