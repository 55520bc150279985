#include "model/layer_cost.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/tensor_table.h"
#include "tests/model/fake_tensor_source.h"
#include "tests/model/published_configs.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

class LayerCostTest : public ::testing::Test {
 protected:
  LayerCostTest() : config_(*ParseModelConfig(DeepSeekR1Config().dump(), "config.json")) {
    source_.Add(StageTensors(config_, WholeModel()), DType::kBF16);
  }

  StageSpec WholeModel() const {
    return {
        .first_layer = 0, .end_layer = config_.num_hidden_layers, .embeds = true, .has_head = true};
  }

  const ModelConfig config_;
  FakeTensorSource source_;
};

// Sizes of R1 in weights.
constexpr int64_t kAttention = 187105280;
constexpr int64_t kNorms = 2 * 7168 + 1536 + 512;
constexpr int64_t kExpert = int64_t{3} * 7168 * 2048;
constexpr int64_t kRouter = int64_t{256} * 7168;
constexpr int64_t kDense = int64_t{3} * 7168 * 18432;
constexpr int64_t kVocabMatrix = int64_t{129280} * 7168;

TEST_F(LayerCostTest, CountsR1InSixteenBits) {
  const absl::StatusOr<ModelCost> cost = ComputeModelCost(config_, source_);
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_EQ(cost->embedding.weight_bytes, 2 * kVocabMatrix);
  EXPECT_EQ(cost->embedding.active_bytes_per_token, 2 * 7168);
  EXPECT_EQ(cost->embedding.flops_per_token, 0);
  EXPECT_EQ(cost->embedding.kv_values_per_token, 0);

  ASSERT_EQ(cost->layers.size(), 61u);
  const LayerCost& dense = cost->layers[0];
  EXPECT_EQ(dense.weight_bytes, 2 * (kAttention + kDense) + 4 * kNorms);
  EXPECT_EQ(dense.active_bytes_per_token, dense.weight_bytes);
  EXPECT_EQ(dense.flops_per_token, 2 * (kAttention + kDense));
  EXPECT_EQ(dense.kv_values_per_token, 576);

  const LayerCost& moe = cost->layers[60];
  const int64_t always = 2 * (kAttention + kRouter + kExpert) + 4 * (kNorms + 256);
  EXPECT_EQ(moe.weight_bytes, always + 2 * 256 * kExpert);
  EXPECT_EQ(moe.active_bytes_per_token, always + 2 * 8 * kExpert);
  EXPECT_EQ(moe.flops_per_token, 2 * (kAttention + kRouter + 9 * kExpert));
  EXPECT_EQ(moe.kv_values_per_token, 576);

  EXPECT_EQ(cost->head.weight_bytes, 2 * kVocabMatrix + 4 * 7168);
  EXPECT_EQ(cost->head.active_bytes_per_token, cost->head.weight_bytes);
  EXPECT_EQ(cost->head.flops_per_token, 2 * kVocabMatrix);
}

TEST_F(LayerCostTest, AddsUpAStage) {
  const absl::StatusOr<ModelCost> cost = ComputeModelCost(config_, source_);
  ASSERT_TRUE(cost.ok()) << cost.status();
  // The norms and the routers' biases are in F32.
  const int64_t vectors = 61 * kNorms + 58 * 256 + 7168;
  EXPECT_EQ(cost->Of(WholeModel()).weight_bytes, 2 * (int64_t{671026419200} + vectors));
  EXPECT_EQ(cost->Of(WholeModel()).kv_values_per_token, 61 * 576);
  const LayerCost first =
      cost->Of({.first_layer = 0, .end_layer = 30, .embeds = true, .has_head = false});
  const LayerCost second =
      cost->Of({.first_layer = 30, .end_layer = 61, .embeds = false, .has_head = true});
  EXPECT_EQ(first.weight_bytes + second.weight_bytes, cost->Of(WholeModel()).weight_bytes);
  EXPECT_EQ(first.flops_per_token + second.flops_per_token, cost->Of(WholeModel()).flops_per_token);
  EXPECT_EQ(cost->Of({}).weight_bytes, 0);
}

TEST_F(LayerCostTest, TellsRoutedExpertsApart) {
  const absl::StatusOr<ModelCost> cost = ComputeModelCost(config_, source_);
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_EQ(cost->layers[0].expert_bytes, 0);
  EXPECT_EQ(cost->layers[0].num_experts, 0);
  EXPECT_EQ(cost->layers[0].always_active_bytes(), cost->layers[0].weight_bytes);
  const LayerCost& moe = cost->layers[3];
  EXPECT_EQ(moe.expert_bytes, 2 * 256 * kExpert);
  EXPECT_EQ(moe.num_experts, 256);
  EXPECT_EQ(moe.experts_per_token, 8);
  EXPECT_EQ(moe.weight_bytes, moe.always_active_bytes() + moe.expert_bytes);
  EXPECT_FALSE(moe.can_offload());
  const LayerCost whole = cost->Of(WholeModel());
  EXPECT_EQ(whole.expert_bytes, 58 * moe.expert_bytes);
  EXPECT_EQ(whole.num_experts, 58 * 256);
  EXPECT_EQ(whole.experts_per_token, 8);
  EXPECT_FALSE(whole.can_offload());
}

TEST_F(LayerCostTest, ASlotTakesTheLargestExpertOfTheStage) {
  const auto set_stride = [&](int layer, int64_t bytes) {
    source_.expert_files[layer].experts.stride = bytes;
  };
  for (int layer = 3; layer < 61; ++layer) set_stride(layer, 8192);
  set_stride(40, 12288);
  absl::StatusOr<ModelCost> cost = ComputeModelCost(config_, source_);
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_EQ(cost->layers[3].expert_slot_bytes, 8192);
  EXPECT_TRUE(cost->layers[3].can_offload());
  EXPECT_EQ(cost->Of({.first_layer = 0, .end_layer = 40}).expert_slot_bytes, 8192);
  EXPECT_EQ(cost->Of({.first_layer = 0, .end_layer = 41}).expert_slot_bytes, 12288);
  EXPECT_FALSE(cost->Of({.first_layer = 0, .end_layer = 3}).can_offload());  // it has none
  // One layer whose experts lie scattered keeps those of its stage in memory.
  source_.expert_files.erase(5);
  cost = ComputeModelCost(config_, source_);
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_FALSE(cost->Of({.first_layer = 0, .end_layer = 8}).can_offload());
  EXPECT_FALSE(cost->Of({.first_layer = 5, .end_layer = 8}).can_offload());
  EXPECT_TRUE(cost->Of({.first_layer = 6, .end_layer = 8}).can_offload());
}

TEST_F(LayerCostTest, CountsMultiTokenPredictionWhereItIsAskedFor) {
  EXPECT_FALSE(ComputeModelCost(config_, source_)->mtp.has_value());
  // The config has it; the checkpoint may not.
  EXPECT_EQ(ComputeModelCost(config_, source_, true).status().code(),
            absl::StatusCode::kInvalidArgument);
  source_.Add(MtpTensors(config_), DType::kBF16);
  const absl::StatusOr<ModelCost> cost = ComputeModelCost(config_, source_, true);
  ASSERT_TRUE(cost.ok()) << cost.status();
  ASSERT_TRUE(cost->mtp.has_value());
  const int64_t joined = 2 * 7168 * 7168;
  EXPECT_EQ(cost->mtp->weight_bytes, cost->layers[60].weight_bytes + 2 * joined + 4 * 3 * 7168);
  EXPECT_EQ(cost->mtp->flops_per_token,
            cost->layers[60].flops_per_token + 2 * (joined + kVocabMatrix));
  EXPECT_EQ(cost->mtp->kv_values_per_token, 576);

  const StageSpec last = {.first_layer = 30, .end_layer = 61, .embeds = false, .has_head = true};
  StageSpec drafting = last;
  drafting.drafts = true;
  EXPECT_EQ(cost->Of(drafting).weight_bytes,
            cost->Of(last).weight_bytes + cost->mtp->weight_bytes + cost->embedding.weight_bytes);
  EXPECT_EQ(cost->Of(drafting).kv_values_per_token, 32 * 576);
}

TEST_F(LayerCostTest, AModelWithoutMultiTokenPredictionSaysSo) {
  nlohmann::json json = DeepSeekR1Config();
  json["num_nextn_predict_layers"] = 0;
  const ModelConfig config = *ParseModelConfig(json.dump(), "config.json");
  EXPECT_EQ(ComputeModelCost(config, source_, true).status(),
            absl::InvalidArgumentError(
                "cannot speculate by mtp: the model has no layer of multi-token prediction "
                "(num_nextn_predict_layers is 0)"));
}

TEST_F(LayerCostTest, CountsTheFixturesTrueBytes) {
  const auto checkpoint = Checkpoint::Open(CARAVAN_SOURCE_DIR "/models/tiny-r1");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const absl::StatusOr<ModelCost> cost = ComputeModelCost((*checkpoint)->config(), **checkpoint);
  ASSERT_TRUE(cost.ok()) << cost.status();
  // An expert: three FP8 matrices of 128 x 256, each with two scales, which take a line.
  const int64_t expert = 3 * (128 * 256 + 64);
  EXPECT_EQ(cost->layers[3].weight_bytes - cost->layers[3].active_bytes_per_token, 28 * expert);
  EXPECT_EQ(cost->head.weight_bytes, 2 * 2048 * 256 + 4 * 256);
}

TEST_F(LayerCostTest, NamesATensorThatIsMissing) {
  source_.tensors.erase("model.layers.59.mlp.experts.7.up_proj.weight");
  const absl::Status status = ComputeModelCost(config_, source_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("model.layers.59.mlp.experts.7.up_proj.weight"));
}

}  // namespace
}  // namespace caravan
