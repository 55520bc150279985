// Synthetic models at work: what their layers leave keeps its size, and experts share the tokens.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/synth/synthetic_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/temp_dir.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr int kTokens = 64;
constexpr int kLayers = 6;

/// A published model's kinds of layers and numbers of experts, narrow.
json Narrow(json config) {
  config.merge_patch(json::parse(R"json({
    "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
    "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "vocab_size": 1024, "max_position_embeddings": 4096, "num_nextn_predict_layers": 0,
    "bos_token_id": 0, "eos_token_id": 1})json"));
  config["num_hidden_layers"] = kLayers;
  if (!config["q_lora_rank"].is_null()) config["q_lora_rank"] = 256;
  return config;
}

/// Mean square of each row.
std::vector<double> RowPowers(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  const size_t width = values.size() / kTokens;
  std::vector<double> powers(kTokens);
  for (size_t i = 0; i < values.size(); ++i) {
    powers[i / width] += std::pow(static_cast<double>(values[i]), 2) / static_cast<double>(width);
  }
  return powers;
}

/// Every expert is chosen by some tokens, none by most: of a layer that gets these activations.
void ExpectSpreadChoice(const ModelConfig& config, const LayerWeights& weights,
                        const std::string& activations) {
  std::vector<float> rows(activations.size() / sizeof(float));
  std::memcpy(rows.data(), activations.data(), activations.size());
  const std::unique_ptr<Backend> backend = *MakeCpuBackend({});
  backend->RmsNorm(rows.data(), kTokens, config.hidden_size, weights.post_attention_layernorm,
                   static_cast<float>(config.rms_norm_eps), rows.data());
  std::vector<float> logits(static_cast<size_t>(kTokens * config.n_routed_experts));
  backend->MatMul(weights.router, rows.data(), kTokens, logits.data());
  const size_t choices = static_cast<size_t>(kTokens * config.router.num_experts_per_tok);
  std::vector<int32_t> ids(choices);
  std::vector<float> expert_weights(choices);
  backend->Route(config.router, logits.data(), weights.e_score_correction_bias, kTokens, ids.data(),
                 expert_weights.data());
  std::map<int32_t, int> tokens_of;
  for (const int32_t id : ids) ++tokens_of[id];
  // Drawn at random, exp(-choices / n_routed_experts) of them would be left out: at most 0.27.
  EXPECT_GE(tokens_of.size(), static_cast<size_t>(config.n_routed_experts) / 2);
  for (const auto& [id, tokens] : tokens_of) EXPECT_LE(tokens, kTokens / 2) << "expert " << id;
}

struct Shape {
  const char* name;
  json config;
  PackTypes types;
};

class SyntheticStageTest : public ::testing::TestWithParam<Shape> {};

TEST_P(SyntheticStageTest, ActivationsKeepTheirSizeThroughAllLayers) {
  const TempDir dir;
  SyntheticModel::Options shape;
  shape.config_path = dir.Write("config.json", Narrow(GetParam().config).dump());
  shape.types = GetParam().types;
  const auto source = SyntheticModel::Create(shape);
  ASSERT_TRUE(source.ok()) << source.status();
  PackOptions pack;
  pack.output = dir.File("packed");
  ASSERT_TRUE(Pack(**source, pack).ok());
  const auto model = PackedModel::Open(pack.output);
  ASSERT_TRUE(model.ok()) << model.status();

  v1::Step step;
  v1::SequenceSlice& slice = *step.add_slices();
  for (uint32_t i = 0; i < kTokens; ++i) slice.add_token_ids(i * 7919 % 1024);
  slice.add_kv_blocks(0);
  slice.set_output(v1::SLICE_OUTPUT_NONE);
  for (int layer = 0; layer < kLayers; ++layer) {
    Stage::Options options;
    options.name = "worker";
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = kTokens;
    const bool is_last = layer + 1 == kLayers;
    const auto stage =
        Stage::Create((*model)->config(), {layer, layer + 1, layer == 0, is_last}, **model,
                      *MakeCpuBackend({}), options, [](int64_t, int64_t) { return true; });
    ASSERT_TRUE(stage.ok()) << stage.status();
    if (layer > 0) {
      ExpectSpreadChoice((*model)->config(), (*stage)->weights().layers[0], step.activations());
    }
    if (is_last) step.mutable_slices(0)->set_output(v1::SLICE_OUTPUT_LOGITS);
    step = (*stage)->Run(std::move(step));
    ASSERT_FALSE(step.has_error()) << step.error().message();
    if (is_last) break;
    for (const double power : RowPowers(step.activations())) {
      // The embedding gives 1. A layer adds at most 1/4 by attention (of the first token, which
      // sees only itself; less where values are averaged), and E[silu(z)^2] = 0.36 by each FFN: of
      // the shared experts, and of the routed ones times the sum of their squared weights, which
      // for R1's 8 of sum 2.5 is about 0.8. Chance may make it half as much again.
      EXPECT_GE(power, 0.5) << "layer " << layer;
      EXPECT_LE(power, 1 + 1.5 * (layer + 1)) << "layer " << layer;
    }
  }
  // Logits of variance 1, and not the same token after every token.
  const std::string& logits = step.results(0).logits();
  for (const double power : RowPowers(logits)) {
    EXPECT_GE(power, 0.5);
    EXPECT_LE(power, 2);
  }
  std::set<int64_t> likeliest;
  std::vector<float> values(logits.size() / sizeof(float));
  std::memcpy(values.data(), logits.data(), logits.size());
  for (auto row = values.begin(); row != values.end(); row += 1024) {
    likeliest.insert(std::max_element(row, row + 1024) - row);
  }
  EXPECT_GE(likeliest.size(), 8u);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SyntheticStageTest,
    ::testing::Values(Shape{"R1_Q4_K", DeepSeekR1Config(), {DType::kQ4_K, DType::kQ8_0}},
                      Shape{"K2_Q2_K", KimiK2Config(), {DType::kQ2_K, DType::kQ6_K}},
                      Shape{"V2_Lite_Q3_K", DeepSeekV2LiteConfig(), {DType::kQ3_K, DType::kQ4_0}},
                      Shape{"V2_Lite_BF16", DeepSeekV2LiteConfig(), {}},
                      Shape{"R1_FP8", DeepSeekR1Config(), {}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace caravan
