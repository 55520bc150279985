// A pipeline on a CUDA card against what other implementations computed, and against itself: the
// same bits whatever the chunks and workers. Without a card these are skipped, by the driver's
// words.

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/pipeline_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/kv_rows.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/step_memory.h"
#include "model/stored_model_cost.h"
#include "tests/cli/pipeline_testing.h"
#include "tests/support/temp_dir.h"
#include "worker/compute_device.h"

namespace caravan {
namespace {

// Sums in float of a few hundred terms in other orders. Caches in f16 round by 2^-11 each.
constexpr double kTolerance = 1e-5;
constexpr double kF16Tolerance = 2e-3;

class CardPipelineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto card =
        OpenComputeDevice({.name = "cuda:0", .memory_bytes = 0, .sharers = 1, .cpu = {}});
    if (!card.ok()) GTEST_SKIP() << card.status();
  }

  static LocalPipeline::Options Options(int workers) {
    LocalPipeline::Options options;
    options.device.device = "cuda:0";
    options.device.vram = int64_t{4} << 30;
    options.num_workers = workers;
    return options;
  }
};

TEST_F(CardPipelineTest, TinyR1) { ExpectGoldenLogits(kTinyR1, 5, Options(1), kTolerance); }

TEST_F(CardPipelineTest, V3Like) {
  ExpectGoldenLogits(SmallGoldenModel("v3-like"), 3, Options(1), kTolerance);
}

TEST_F(CardPipelineTest, KimiK2Like) {
  ExpectGoldenLogits(SmallGoldenModel("kimi-k2-like"), 3, Options(1), kTolerance);
}

TEST_F(CardPipelineTest, V2LiteLike) {
  ExpectGoldenLogits(SmallGoldenModel("v2-lite-like"), 3, Options(1), kTolerance);
}

TEST_F(CardPipelineTest, KvCachesOfSixteenBits) {
  LocalPipeline::Options options = Options(1);
  options.kv_dtype = DType::kF16;
  ExpectGoldenLogits(kTinyR1, 5, options, kF16Tolerance);
}

TEST_F(CardPipelineTest, GreedyRepliesAreTokenForTokenTheReference) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  for (const bool drafts : {false, true}) {
    for (const int workers : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(workers, " workers, drafts ", drafts));
      LocalPipeline::Options options = Options(workers);
      options.kv_tokens = 16384;
      options.speculate = drafts;
      const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
      ExpectGoldenReplies(*checkpoint, golden, golden.size(), pipeline->driver());
      if (drafts) {
        EXPECT_GT(pipeline->driver().stats().draft_accepted_tokens, 50);
      }
    }
  }
}

TEST_F(CardPipelineTest, ExpertsBeyondTheCardGiveTheSameReplies) {
  const TempDir dir;
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  PackOptions pack;
  pack.output = dir.File("packed");
  ASSERT_TRUE(Pack(*checkpoint, pack).ok());
  const std::unique_ptr<PackedModel> packed = *PackedModel::Open(pack.output);
  LocalPipeline::Options options = Options(1);
  options.context_tokens = 512;
  options.memory_budget_bytes = int64_t{2} << 30;
  // All but half of the experts.
  const int64_t step_bytes =
      ComputeCardStepMemory(checkpoint->config(), options.prefill_chunk, kKvBlockTokens)
          .Of({0, checkpoint->config().num_hidden_layers, true, true}, 1);
  const LayerCost cost = CostOfStoredModel(*packed, false)
                             ->Of({0, checkpoint->config().num_hidden_layers, true, true});
  options.device.vram = step_bytes + cost.always_active_bytes() + cost.expert_bytes / 2 +
                        KvBytes(DType::kF32, cost.kv_values_per_token * 512);
  absl::StatusOr<std::unique_ptr<LocalPipeline>> pipeline = LocalPipeline::Create(*packed, options);
  ASSERT_TRUE(pipeline.ok()) << pipeline.status();
  ExpectGoldenReplies(*checkpoint, ReadGoldenReplies(), 4, (*pipeline)->driver());
  EXPECT_GT((*pipeline)->stages()[0].expert_slots, 0);
}

TEST_F(CardPipelineTest, TakesNoMoreOfTheCardThanItMay) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const CudaDevice device = *CudaDevice::Open(0);
  const int64_t free_bytes = device.Memory()->free_bytes;
  LocalPipeline::Options options = Options(1);
  options.device.vram = int64_t{600} << 20;
  options.kv_tokens = int64_t{1} << 30;  // all that there is
  const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
  ExpectGoldenReplies(*checkpoint, {ReadGoldenReplies()[0]}, 1, pipeline->driver());
  const int64_t taken = free_bytes - device.Memory()->free_bytes;
  EXPECT_LE(taken, options.device.vram);
  EXPECT_GT(taken, options.device.vram / 2);
}

TEST_F(CardPipelineTest, ACardThatIsTooSmallIsSaidSo) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  LocalPipeline::Options options = Options(1);
  options.device.vram = int64_t{100} << 20;
  const auto pipeline = LocalPipeline::Create(*checkpoint, options);
  EXPECT_EQ(pipeline.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(pipeline.status().message()), ::testing::HasSubstr("for steps"));
}

}  // namespace
}  // namespace caravan
