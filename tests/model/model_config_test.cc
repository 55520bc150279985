#include "model/model_config.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/published_configs.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kOrigin[] = "dir/config.json";

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump(), kOrigin);
}

ModelConfig MustParse(const json& config) {
  const absl::StatusOr<ModelConfig> parsed = Parse(config);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

ModelConfig ParseFixture(const std::string& path) {
  const absl::StatusOr<std::string> text =
      ReadFile(std::string(CARAVAN_SOURCE_DIR "/") + path, 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return MustParse(json::parse(*text));
}

/// The config must be refused in words that name the file, the field and the cause.
void ExpectRefused(const json& config, const std::string& field, const std::string& cause) {
  const absl::Status status = Parse(config).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field << ": " << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(kOrigin), HasSubstr("\"" + field + "\""), HasSubstr(cause)));
}

/// `base` with one value changed; `pointer` as in RFC 6901.
json With(json base, const std::string& pointer, const json& value) {
  base[json::json_pointer(pointer)] = value;
  return base;
}

TEST(ModelConfigTest, ReadsDeepSeekR1) {
  const ModelConfig c = MustParse(DeepSeekR1Config());
  EXPECT_EQ(c.model_type, "deepseek_v3");
  EXPECT_EQ(c.vocab_size, 129280);
  EXPECT_EQ(c.hidden_size, 7168);
  EXPECT_EQ(c.intermediate_size, 18432);
  EXPECT_EQ(c.moe_intermediate_size, 2048);
  EXPECT_EQ(c.num_hidden_layers, 61);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.num_attention_heads, 128);
  EXPECT_EQ(c.n_shared_experts, 1);
  EXPECT_EQ(c.n_routed_experts, 256);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.kv_lora_rank, 512);
  EXPECT_EQ(c.router.n_routed_experts, 256);
  EXPECT_EQ(c.router.num_experts_per_tok, 8);
  EXPECT_EQ(c.router.n_group, 8);
  EXPECT_EQ(c.router.topk_group, 4);
  EXPECT_EQ(c.router.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_EQ(c.router.topk_method, TopkMethod::kNoauxTc);
  EXPECT_TRUE(c.router.norm_topk_prob);
  EXPECT_EQ(c.router.routed_scaling_factor, 2.5f);
  EXPECT_EQ(c.max_position_embeddings, 163840);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.rope_theta, 10000);
  ASSERT_TRUE(c.yarn.has_value());
  EXPECT_EQ(c.yarn->factor, 40);
  EXPECT_EQ(c.yarn->original_max_position_embeddings, 4096);
  EXPECT_EQ(c.yarn->beta_fast, 32);
  EXPECT_EQ(c.yarn->beta_slow, 1);
  EXPECT_EQ(c.yarn->mscale, 1);
  EXPECT_EQ(c.yarn->mscale_all_dim, 1);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(c.IsMoeLayer(2));
  EXPECT_TRUE(c.IsMoeLayer(3));
  EXPECT_TRUE(c.IsMoeLayer(60));
  const MlaShape mla = c.Mla();
  EXPECT_EQ(mla.num_heads, 128);
  EXPECT_EQ(mla.q_head_dim(), 192);
  EXPECT_EQ(mla.v_head_dim, 128);
  EXPECT_EQ(mla.kv_width(), 576);
}

TEST(ModelConfigTest, ReadsKimiK2) {
  const ModelConfig c = MustParse(KimiK2Config());
  EXPECT_EQ(c.router.n_group, 1);
  EXPECT_EQ(c.router.n_routed_experts, 384);
  EXPECT_EQ(c.rope_theta, 50000);
  EXPECT_EQ(c.yarn->beta_fast, 1);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(163585, 163586));
}

TEST(ModelConfigTest, ReadsDeepSeekV2) {
  const ModelConfig c = MustParse(DeepSeekV2Config());
  EXPECT_EQ(c.router.topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_EQ(c.router.topk_group, 3);
  EXPECT_EQ(c.router.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_FALSE(c.router.norm_topk_prob);
  EXPECT_EQ(c.router.routed_scaling_factor, 16.0f);
  const ModelConfig lite = MustParse(DeepSeekV2LiteConfig());
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.router.topk_method, TopkMethod::kGreedy);
}

TEST(ModelConfigTest, ReadsTheFixtures) {
  const ModelConfig tiny = ParseFixture("models/tiny-r1/config.json");
  EXPECT_EQ(tiny.num_hidden_layers, 6);
  EXPECT_EQ(tiny.router.n_group, 4);
  EXPECT_EQ(tiny.yarn->original_max_position_embeddings, 512);
  const ModelConfig v3 = ParseFixture("tests/data/goldens/v3-like/config.json");
  EXPECT_EQ(v3.router.topk_group, 2);
  EXPECT_EQ(v3.q_lora_rank, 96);
  const ModelConfig k2 = ParseFixture("tests/data/goldens/kimi-k2-like/config.json");
  EXPECT_EQ(k2.router.n_routed_experts, 24);
  EXPECT_EQ(k2.yarn->factor, 32);
  const ModelConfig v2 = ParseFixture("tests/data/goldens/v2-lite-like/config.json");
  EXPECT_EQ(v2.q_lora_rank, 0);
  EXPECT_EQ(v2.n_shared_experts, 2);
}

TEST(ModelConfigTest, DefaultsWhatDeepSeekV2LeavesOut) {
  json config = DeepSeekV2Config();
  config.erase("scoring_func");
  config.erase("norm_topk_prob");
  config.erase("moe_layer_freq");
  config.erase("tie_word_embeddings");
  const ModelConfig c = MustParse(config);
  EXPECT_EQ(c.router.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_FALSE(c.router.norm_topk_prob);
  EXPECT_EQ(c.moe_layer_freq, 1);
}

TEST(ModelConfigTest, NamesAFieldThatIsMissing) {
  for (const char* field : {"model_type",
                            "vocab_size",
                            "hidden_size",
                            "intermediate_size",
                            "moe_intermediate_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "n_routed_experts",
                            "n_shared_experts",
                            "q_lora_rank",
                            "kv_lora_rank",
                            "qk_nope_head_dim",
                            "qk_rope_head_dim",
                            "v_head_dim",
                            "n_group",
                            "topk_group",
                            "num_experts_per_tok",
                            "first_k_dense_replace",
                            "norm_topk_prob",
                            "scoring_func",
                            "topk_method",
                            "routed_scaling_factor",
                            "hidden_act",
                            "max_position_embeddings",
                            "rms_norm_eps",
                            "rope_theta",
                            "bos_token_id",
                            "eos_token_id"}) {
    json config = DeepSeekR1Config();
    config.erase(field);
    ExpectRefused(config, field, "is missing");
  }
  for (const char* field : {"type", "factor", "original_max_position_embeddings"}) {
    json config = DeepSeekR1Config();
    config["rope_scaling"].erase(field);
    ExpectRefused(config, field, "is missing");
  }
}

TEST(ModelConfigTest, RefusesSizesOutOfRange) {
  for (const char* field : {"vocab_size", "hidden_size", "intermediate_size",
                            "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
                            "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                            "num_experts_per_tok", "max_position_embeddings", "moe_layer_freq"}) {
    for (const json& value : {json(0), json(-1), json(int64_t{1} << 40), json(UINT64_MAX),
                              json(2.5), json("7"), json(true), json::array()}) {
      ExpectRefused(With(DeepSeekR1Config(), std::string("/") + field, value), field,
                    "must be an integer from");
    }
  }
  for (const char* field :
       {"q_lora_rank", "n_routed_experts", "n_shared_experts", "first_k_dense_replace"}) {
    for (const json& value : {json(-1), json(int64_t{1} << 40), json("7")}) {
      ExpectRefused(With(DeepSeekR1Config(), std::string("/") + field, value), field,
                    "must be an integer from");
    }
  }
  ExpectRefused(With(DeepSeekR1Config(), "/qk_rope_head_dim", 63), "qk_rope_head_dim",
                "must be even");
}

TEST(ModelConfigTest, RefusesNumbersOutOfRange) {
  for (const char* pointer :
       {"/rms_norm_eps", "/rope_theta", "/routed_scaling_factor", "/rope_scaling/factor",
        "/rope_scaling/beta_fast", "/rope_scaling/beta_slow", "/rope_scaling/mscale",
        "/rope_scaling/mscale_all_dim"}) {
    const std::string field = std::string(pointer).substr(std::string(pointer).rfind('/') + 1);
    for (const json& value : {json(-1.0), json(1e300), json("1")}) {
      ExpectRefused(With(DeepSeekR1Config(), pointer, value), field, "must be a number from");
    }
  }
  // JSON has no NaN: written bare it is no JSON, and null is absence.
  std::string text = DeepSeekR1Config().dump();
  const std::string theta = "\"rope_theta\":10000";
  ASSERT_NE(text.find(theta), std::string::npos);
  text.replace(text.find(theta), theta.size(), "\"rope_theta\":NaN");
  EXPECT_THAT(std::string(ParseModelConfig(text, kOrigin).status().message()),
              AllOf(HasSubstr(kOrigin), HasSubstr("not valid JSON")));
}

TEST(ModelConfigTest, RefusesWhatItDoesNotRun) {
  const json r1 = DeepSeekR1Config();
  ExpectRefused(With(r1, "/model_type", "llama"), "model_type", "\"llama\"");
  ExpectRefused(With(r1, "/model_type", "deepseek_v32"), "model_type", "\"deepseek_v32\"");
  ExpectRefused(With(r1, "/hidden_act", "gelu"), "hidden_act", "\"gelu\"");
  ExpectRefused(With(r1, "/attention_bias", true), "attention_bias", "only false");
  ExpectRefused(With(r1, "/rope_interleave", false), "rope_interleave", "only true");
  ExpectRefused(With(r1, "/num_key_value_heads", 8), "num_key_value_heads", "128");
  ExpectRefused(With(r1, "/scoring_func", "relu"), "scoring_func", "\"relu\"");
  ExpectRefused(With(r1, "/topk_method", "random"), "topk_method", "\"random\"");
  ExpectRefused(With(r1, "/quantization_config/quant_method", "awq"), "quant_method", "\"awq\"");
  ExpectRefused(With(r1, "/quantization_config/fmt", "e5m2"), "fmt", "\"e5m2\"");
  for (const json& block : {json({64, 128}), json({128}), json({128, 128, 128})}) {
    ExpectRefused(With(r1, "/quantization_config/weight_block_size", block), "weight_block_size",
                  "[128, 128]");
  }
  ExpectRefused(With(r1, "/rope_scaling/type", "linear"), "type", "\"linear\"");
  ExpectRefused(With(r1, "/rope_scaling/rope_type", "llama3"), "rope_type", "\"llama3\"");
  ExpectRefused(With(r1, "/rope_scaling/attention_factor", 1.0), "attention_factor",
                "not supported");
  ExpectRefused(With(r1, "/rope_scaling/truncate", false), "truncate", "not supported");
  ExpectRefused(With(r1, "/rope_scaling/beta_fast", 0.5), "beta_fast", "beta_slow");
  ExpectRefused(With(r1, "/rope_scaling", "yarn"), "rope_scaling", "must be an object");
}

TEST(ModelConfigTest, RefusesARouterThatCannotChoose) {
  const json r1 = DeepSeekR1Config();
  ExpectRefused(With(r1, "/n_group", 7), "n_group", "must divide n_routed_experts (256)");
  ExpectRefused(With(r1, "/n_group", 0), "n_group", "from 1");
  ExpectRefused(With(r1, "/topk_group", 9), "topk_group", "from 1 to 8");
  ExpectRefused(With(r1, "/n_group", 256), "n_group", "noaux_tc");
  ExpectRefused(With(r1, "/num_experts_per_tok", 257), "num_experts_per_tok", "from 1 to 256");
  ExpectRefused(With(r1, "/num_experts_per_tok", 129), "num_experts_per_tok", "at most 128");
  EXPECT_EQ(MustParse(With(r1, "/num_experts_per_tok", 128)).router.num_experts_per_tok, 128);
  // The best single expert ranks a group of V2, so groups of one are fine there.
  EXPECT_EQ(
      MustParse(With(With(DeepSeekV2Config(), "/n_group", 160), "/topk_group", 6)).router.n_group,
      160);
}

TEST(ModelConfigTest, RefusesTokensOutsideTheVocabulary) {
  for (const json& eos : {json(129280), json(-1), json("1"), json(1.0), json::array(),
                          json({1, 129280}), json({{1}}), json::object()}) {
    ExpectRefused(With(DeepSeekR1Config(), "/eos_token_id", eos), "eos_token_id", "must");
  }
  ExpectRefused(With(DeepSeekR1Config(), "/bos_token_id", 129280), "bos_token_id", "to 129279");
}

TEST(ModelConfigTest, TakesADenseModel) {
  json config = DeepSeekR1Config();
  config["n_routed_experts"] = nullptr;
  for (const char* field : {"n_shared_experts", "moe_intermediate_size", "topk_method",
                            "scoring_func", "n_group", "topk_group", "num_experts_per_tok"}) {
    config.erase(field);
  }
  const ModelConfig c = MustParse(config);
  EXPECT_EQ(c.n_routed_experts, 0);
  for (int layer = 0; layer < c.num_hidden_layers; ++layer) EXPECT_FALSE(c.IsMoeLayer(layer));
}

TEST(ModelConfigTest, FollowsTheFrequencyOfMoeLayers) {
  const ModelConfig c = MustParse(With(DeepSeekR1Config(), "/moe_layer_freq", 2));
  EXPECT_FALSE(c.IsMoeLayer(2));
  EXPECT_FALSE(c.IsMoeLayer(3));
  EXPECT_TRUE(c.IsMoeLayer(4));
  EXPECT_FALSE(c.IsMoeLayer(5));
}

TEST(ModelConfigTest, ReadsTheNewNameOfRopeScaling) {
  json config = DeepSeekR1Config();
  json rope = config["rope_scaling"];
  config.erase("rope_scaling");
  config.erase("rope_theta");
  rope.erase("type");
  rope["rope_type"] = "yarn";
  rope["rope_theta"] = 50000;
  config["rope_parameters"] = rope;
  const ModelConfig c = MustParse(config);
  EXPECT_EQ(c.rope_theta, 50000);
  EXPECT_EQ(c.yarn->factor, 40);
  config["rope_scaling"] = rope;
  ExpectRefused(config, "rope_parameters", "beside rope_scaling");
}

TEST(ModelConfigTest, RotatesPlainlyWithoutYarn) {
  json config = DeepSeekR1Config();
  config.erase("rope_scaling");
  const json plain = json({{"rope_type", "default"}, {"rope_theta", 10000}});
  for (const json& variant : {config, With(DeepSeekR1Config(), "/rope_scaling", nullptr),
                              With(config, "/rope_parameters", plain)}) {
    const ModelConfig c = MustParse(variant);
    EXPECT_FALSE(c.yarn.has_value());
    EXPECT_FLOAT_EQ(c.Mla().softmax_scale, 1 / std::sqrt(192.0f));
    const RotaryEmbedding rope = MakeRotaryEmbedding(c);
    ASSERT_EQ(rope.inv_freq.size(), 32u);
    EXPECT_EQ(rope.amplitude, 1.0f);
    EXPECT_FLOAT_EQ(rope.inv_freq[0], 1.0f);
    EXPECT_FLOAT_EQ(rope.inv_freq[16], 0.01f);  // 10000^(-32/64)
    EXPECT_EQ(rope.Table().inv_freq.data(), rope.inv_freq.data());
  }
}

// Expected values from YaRN's formulas in Python's doubles.
TEST(ModelConfigTest, ScalesAttentionAsYarnAsks) {
  EXPECT_FLOAT_EQ(MustParse(DeepSeekR1Config()).Mla().softmax_scale, 0.1352337788608801f);
  EXPECT_FLOAT_EQ(MustParse(KimiK2Config()).Mla().softmax_scale, 0.13086079996295005f);
  EXPECT_FLOAT_EQ(MustParse(DeepSeekV2Config()).Mla().softmax_scale, 0.11472138679292611f);
  const json r1 = DeepSeekR1Config();
  const float plain = 1 / std::sqrt(192.0f);
  EXPECT_FLOAT_EQ(MustParse(With(r1, "/rope_scaling/mscale_all_dim", 0)).Mla().softmax_scale,
                  plain);
  EXPECT_FLOAT_EQ(MustParse(With(r1, "/rope_scaling/factor", 1)).Mla().softmax_scale, plain);
}

TEST(ModelConfigTest, BlendsFrequenciesAsYarnAsks) {
  const RotaryEmbedding r1 = MakeRotaryEmbedding(MustParse(DeepSeekR1Config()));
  ASSERT_EQ(r1.inv_freq.size(), 32u);
  EXPECT_FLOAT_EQ(r1.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(r1.inv_freq[10], 0.05623413251903491f);  // the last that keeps its frequency
  EXPECT_FLOAT_EQ(r1.inv_freq[11], 0.03900692656714386f);
  EXPECT_FLOAT_EQ(r1.inv_freq[16], 0.0055f);
  EXPECT_FLOAT_EQ(r1.inv_freq[23], 3.33380358040831e-05f);  // the first that is divided by 40
  EXPECT_FLOAT_EQ(r1.inv_freq[31], 3.3338035804083097e-06f);
  EXPECT_EQ(r1.amplitude, 1.0f);

  const RotaryEmbedding k2 = MakeRotaryEmbedding(MustParse(KimiK2Config()));
  EXPECT_FLOAT_EQ(k2.inv_freq[19], 0.0016217599081159522f);
  EXPECT_FLOAT_EQ(k2.inv_freq[20], 3.6140467735726306e-05f);
}

TEST(ModelConfigTest, KeepsARampOfNoWidthFinite) {
  // A context so short that both bounds clamp to the first pair.
  const RotaryEmbedding rope = MakeRotaryEmbedding(
      MustParse(With(DeepSeekR1Config(), "/rope_scaling/original_max_position_embeddings", 6)));
  EXPECT_FLOAT_EQ(rope.inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(rope.inv_freq[1], 0.7498942093324559f / 40);
}

TEST(ModelConfigTest, AmplifiesByTheRatioOfMscales) {
  json config = DeepSeekR1Config();
  config["rope_scaling"]["mscale"] = 0.5;
  const float expected =
      static_cast<float>((0.05 * std::log(40.0) + 1) / (0.1 * std::log(40.0) + 1));
  EXPECT_FLOAT_EQ(MakeRotaryEmbedding(MustParse(config)).amplitude, expected);
}

TEST(ModelConfigTest, SurvivesMutatedBytes) {
  const std::string valid = DeepSeekR1Config().dump();
  std::mt19937_64 random(20240607);
  const std::string spice = "{}[]\",:0123456789-+.eE\\nulltruefalse \t";
  for (int round = 0; round < 4000; ++round) {
    std::string text = valid;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text[at] = spice[random() % spice.size()];
          break;
        case 2:
          text.erase(at, 1 + random() % 20);
          break;
        default:
          text.insert(at, 1, spice[random() % spice.size()]);
          break;
      }
      if (random() % 10 == 0) text.resize(random() % (text.size() + 1));
      if (text.empty()) text.push_back(' ');
    }
    const absl::StatusOr<ModelConfig> config = ParseModelConfig(text, kOrigin);
    if (!config.ok()) {
      EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
      EXPECT_THAT(std::string(config.status().message()), HasSubstr(kOrigin)) << text;
      continue;
    }
    EXPECT_GT(config->Mla().softmax_scale, 0) << text;
    for (const float freq : MakeRotaryEmbedding(*config).inv_freq) {
      EXPECT_TRUE(freq > 0 && freq <= 1) << text;
    }
  }
}

}  // namespace
}  // namespace caravan
