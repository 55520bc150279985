#include "model/gguf/gguf_config.h"

#include <cmath>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/gguf/gguf_file.h"
#include "model/model_config.h"
#include "tests/model/fake_tensor_source.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

/// Every field, doubles with all their digits.
std::string ConfigText(const ModelConfig& c) {
  const auto exact = [](double value) { return json(value).dump(); };
  const auto yarn = [&]() -> std::string {
    if (!c.yarn.has_value()) return "none";
    return absl::StrCat(exact(c.yarn->factor), " ", c.yarn->original_max_position_embeddings, " ",
                        exact(c.yarn->beta_fast), " ", exact(c.yarn->beta_slow), " ",
                        exact(c.yarn->mscale), " ", exact(c.yarn->mscale_all_dim));
  };
  const RouterShape& r = c.router;
  return absl::StrCat(
             "model_type ", c.model_type, "\nvocab_size ", c.vocab_size, "\nhidden_size ",
             c.hidden_size, "\nintermediate_size ", c.intermediate_size, "\nmoe_intermediate_size ",
             c.moe_intermediate_size, "\nnum_hidden_layers ", c.num_hidden_layers,
             "\nnum_nextn_predict_layers ", c.num_nextn_predict_layers, "\nnum_attention_heads ",
             c.num_attention_heads, "\nn_shared_experts ", c.n_shared_experts,
             "\nn_routed_experts ", c.n_routed_experts, "\nq_lora_rank ", c.q_lora_rank,
             "\nkv_lora_rank ", c.kv_lora_rank, "\nqk_nope_head_dim ", c.qk_nope_head_dim,
             "\nqk_rope_head_dim ", c.qk_rope_head_dim, "\nv_head_dim ", c.v_head_dim, "\nrouter ",
             r.n_routed_experts, " ", r.num_experts_per_tok, " ", r.n_group, " ", r.topk_group, " ",
             static_cast<int>(r.scoring_func), " ", static_cast<int>(r.topk_method), " ",
             r.norm_topk_prob, " ", exact(r.routed_scaling_factor)) +
         absl::StrCat("\nfirst_k_dense_replace ", c.first_k_dense_replace, "\nmoe_layer_freq ",
                      c.moe_layer_freq, "\nmax_position_embeddings ", c.max_position_embeddings,
                      "\nrms_norm_eps ", exact(c.rms_norm_eps), "\nrope_theta ",
                      exact(c.rope_theta), "\nyarn ", yarn(), "\ntie_word_embeddings ",
                      c.tie_word_embeddings, "\nbos_token_id ", c.bos_token_id, "\neos_token_ids ",
                      absl::StrJoin(c.eos_token_ids, " "));
}

json ConfigFile(const std::string& directory) {
  const auto config = ReadJsonFile(absl::StrCat(CARAVAN_SOURCE_DIR "/", directory, "/config.json"));
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(json::object());
}

class GgufConfigTest : public ::testing::Test {
 protected:
  /// The tensors of a file of this model whose presence says something.
  void AddTensors(const json& config, bool with_mtp) {
    const TensorInfo any{DType::kF32, {1}};
    tensors_.tensors["token_embd.weight"] = {
        DType::kF32, {config["vocab_size"].get<int64_t>(), config["hidden_size"].get<int64_t>()}};
    tensors_.tensors["output.weight"] = any;
    if (config["topk_method"] == "noaux_tc") {
      const int first = config["first_k_dense_replace"];
      tensors_.tensors[absl::StrCat("blk.", first, ".exp_probs_b.bias")] = any;
    }
    if (with_mtp && config.value("num_nextn_predict_layers", 0) > 0) {
      const int layers = config["num_hidden_layers"];
      tensors_.tensors[absl::StrCat("blk.", layers, ".nextn.eh_proj.weight")] = any;
    }
  }

  absl::StatusOr<std::string> Convert(const GgufWriter& writer) {
    CARAVAN_ASSIGN_OR_RETURN(file_, GgufFile::Open(dir_.Write("x.gguf", writer.Bytes())));
    return GgufConfigJson(file_->metadata(), tensors_);
  }

  ModelConfig MustConvert(const GgufWriter& writer) {
    const auto text = Convert(writer);
    EXPECT_TRUE(text.ok()) << text.status();
    if (!text.ok()) return {};
    const auto config = ParseModelConfig(*text, "x.gguf");
    EXPECT_TRUE(config.ok()) << config.status();
    return config.value_or(ModelConfig());
  }

  ModelConfig ThroughGguf(const json& config, GgufAge age, bool with_mtp,
                          const std::string& pre = "deepseek-v3") {
    tensors_.tensors.clear();
    AddTensors(config, with_mtp);
    GgufWriter writer;
    AddGgufConfig(config, age, with_mtp, writer);
    writer.SetString("tokenizer.ggml.pre", pre);
    return MustConvert(writer);
  }

  static ModelConfig Parse(const json& config) {
    const auto parsed = ParseModelConfig(config.dump(), "config.json");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.value_or(ModelConfig());
  }

  /// tiny-r1's metadata.
  GgufWriter TinyR1() {
    const json config = ConfigFile("models/tiny-r1");
    tensors_.tensors.clear();
    AddTensors(config, true);
    GgufWriter writer;
    AddGgufConfig(config, GgufAge::kNew, true, writer);
    return writer;
  }

  void ExpectRefused(absl::string_view bytes, const std::string& key, const std::string& cause) {
    const auto file = GgufFile::Open(dir_.Write("x.gguf", bytes));
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::Status status = GgufConfigJson((*file)->metadata(), tensors_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("\"", key, "\" ", cause)));
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("x.gguf")));
  }

  TempDir dir_;
  FakeTensorSource tensors_;
  std::unique_ptr<GgufFile> file_;
};

TEST_F(GgufConfigTest, SaysWhatConfigJsonSays) {
  for (const json& config : {DeepSeekR1Config(), DeepSeekV2Config(), DeepSeekV2LiteConfig(),
                             ConfigFile("models/tiny-r1"), ConfigFile("tests/data/goldens/v3-like"),
                             ConfigFile("tests/data/goldens/kimi-k2-like"),
                             ConfigFile("tests/data/goldens/v2-lite-like")}) {
    EXPECT_EQ(ConfigText(ThroughGguf(config, GgufAge::kNew, true)), ConfigText(Parse(config)));
  }
  EXPECT_EQ(ConfigText(ThroughGguf(KimiK2Config(), GgufAge::kNew, true, "kimi-k2")),
            ConfigText(Parse(KimiK2Config())));
}

TEST_F(GgufConfigTest, KnowsWhatOlderFilesOfPublishedModelsLeaveOut) {
  for (const json& config : {DeepSeekR1Config(), DeepSeekV2Config(), DeepSeekV2LiteConfig()}) {
    EXPECT_EQ(ConfigText(ThroughGguf(config, GgufAge::kOld, true)), ConfigText(Parse(config)));
  }
  EXPECT_EQ(ConfigText(ThroughGguf(KimiK2Config(), GgufAge::kOld, true, "kimi-k2")),
            ConfigText(Parse(KimiK2Config())));
}

TEST_F(GgufConfigTest, GuessesNoGroupsForOtherShapes) {
  json config = DeepSeekR1Config();
  config["n_routed_experts"] = 128;
  EXPECT_EQ(ThroughGguf(config, GgufAge::kOld, true).router.n_group, 1);
  config = DeepSeekR1Config();
  config["hidden_size"] = 4096;
  EXPECT_EQ(ThroughGguf(config, GgufAge::kOld, true).router.n_group, 1);
}

TEST_F(GgufConfigTest, CountsLayersOfMultiTokenPredictionOnlyWhereTheyAre) {
  const json config = DeepSeekR1Config();
  ModelConfig converted = ThroughGguf(config, GgufAge::kNew, /*with_mtp=*/false);
  EXPECT_EQ(converted.num_hidden_layers, 61);
  EXPECT_EQ(converted.num_nextn_predict_layers, 0);

  // Counted, but left out of the file.
  GgufWriter counted;
  AddGgufConfig(config, GgufAge::kNew, true, counted);
  converted = MustConvert(counted);
  EXPECT_EQ(converted.num_hidden_layers, 61);
  EXPECT_EQ(converted.num_nextn_predict_layers, 0);

  // The key, and a block_count that does not count them: first without them, then with.
  GgufWriter writer;
  AddGgufConfig(config, GgufAge::kNew, false, writer);
  writer.Set("deepseek2.nextn_predict_layers", uint32_t{1});
  tensors_.tensors["blk.60.attn_norm.weight"] = {DType::kF32, {7168}};
  converted = MustConvert(writer);
  EXPECT_EQ(converted.num_hidden_layers, 61);
  EXPECT_EQ(converted.num_nextn_predict_layers, 0);
  tensors_.tensors["blk.61.nextn.eh_proj.weight"] = {DType::kF32, {7168, 14336}};
  converted = MustConvert(writer);
  EXPECT_EQ(converted.num_hidden_layers, 61);
  EXPECT_EQ(converted.num_nextn_predict_layers, 1);
}

TEST_F(GgufConfigTest, YarnGivesTheSameScaleAndAngles) {
  // The figures of the published models, not of the code: R1's softmax scale is
  // (0.1 ln 40 + 1)^2 / sqrt(192), V2's has 0.0707 in the place of 0.1.
  const auto scale = [](double multiplier) {
    return std::pow(multiplier * std::log(40.0) + 1, 2) / std::sqrt(192.0);
  };
  const ModelConfig r1 = ThroughGguf(DeepSeekR1Config(), GgufAge::kNew, false);
  EXPECT_FLOAT_EQ(r1.Mla().softmax_scale, static_cast<float>(scale(0.1)));
  EXPECT_EQ(MakeRotaryEmbedding(r1).amplitude, 1.0f);
  const ModelConfig v2 = ThroughGguf(DeepSeekV2Config(), GgufAge::kNew, false);
  EXPECT_FLOAT_EQ(v2.Mla().softmax_scale, static_cast<float>(scale(0.0707)));
  EXPECT_EQ(MakeRotaryEmbedding(v2).amplitude, 1.0f);
  EXPECT_EQ(MakeRotaryEmbedding(v2).inv_freq,
            MakeRotaryEmbedding(Parse(DeepSeekV2Config())).inv_freq);
}

TEST_F(GgufConfigTest, TiesTheHeadWhereThereIsNoOutput) {
  json config = DeepSeekR1Config();
  AddTensors(config, false);
  tensors_.tensors.erase("output.weight");
  GgufWriter writer;
  AddGgufConfig(config, GgufAge::kNew, false, writer);
  EXPECT_TRUE(MustConvert(writer).tie_word_embeddings);
}

TEST_F(GgufConfigTest, NamesAKeyThatIsMissing) {
  for (const char* key :
       {"general.architecture", "deepseek2.block_count", "deepseek2.context_length",
        "deepseek2.embedding_length", "deepseek2.feed_forward_length",
        "deepseek2.expert_feed_forward_length", "deepseek2.attention.head_count",
        "deepseek2.attention.kv_lora_rank", "deepseek2.attention.layer_norm_rms_epsilon",
        "deepseek2.attention.value_length_mla", "deepseek2.expert_used_count",
        "deepseek2.expert_gating_func", "deepseek2.rope.dimension_count",
        "deepseek2.rope.scaling.factor", "deepseek2.rope.scaling.original_context_length",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"}) {
    std::string bytes = TinyR1().Bytes();
    const size_t at = bytes.find(key);
    ASSERT_NE(at, std::string::npos) << key;
    bytes[at] = '~';  // Under another name it is as good as gone.
    ExpectRefused(bytes, key, "is missing");
  }
}

TEST_F(GgufConfigTest, RefusesOtherModelsByKey) {
  GgufWriter llama;
  llama.SetString("general.architecture", "llama");
  ExpectRefused(llama.Bytes(), "general.architecture",
                "is \"llama\", but Caravan runs only deepseek2");

  for (const char* key :
       {"deepseek2.attention.temperature_scale", "deepseek2.attention.sliding_window",
        "deepseek2.rope.scaling.attn_factor"}) {
    GgufWriter writer = TinyR1();
    writer.Set(key, 0.5f);
    ExpectRefused(writer.Bytes(), key, "is set");
  }

  json config = ConfigFile("models/tiny-r1");
  config["scoring_func"] = "softmax";  // of which older files say nothing
  GgufWriter old;
  AddGgufConfig(config, GgufAge::kOld, true, old);
  ExpectRefused(old.Bytes(), "deepseek2.expert_gating_func", "is missing");
  old.Set("deepseek2.expert_gating_func", uint32_t{4});
  ExpectRefused(old.Bytes(), "deepseek2.expert_gating_func", "is 4");
}

TEST_F(GgufConfigTest, RefusesSizesThatDisagree) {
  json config = ConfigFile("models/tiny-r1");
  config["qk_nope_head_dim"] = 0;
  GgufWriter writer;
  AddGgufConfig(config, GgufAge::kNew, true, writer);
  ExpectRefused(writer.Bytes(), "deepseek2.attention.key_length_mla", "must be larger than");
  config = ConfigFile("models/tiny-r1");
  GgufWriter heads;
  AddGgufConfig(config, GgufAge::kOld, true, heads);
  std::string bytes = heads.Bytes();
  const std::string key = "deepseek2.attention.head_count_kv";
  bytes[bytes.find(key) + key.size() + 4] = 2;  // behind the type
  ExpectRefused(bytes, key, "must be 1 or attention.head_count (8)");
}

TEST_F(GgufConfigTest, LeavesRangesToTheConfigsParser) {
  json config = ConfigFile("models/tiny-r1");
  config["hidden_size"] = 1 << 20;
  GgufWriter writer;
  AddGgufConfig(config, GgufAge::kNew, false, writer);
  const auto text = Convert(writer);
  ASSERT_TRUE(text.ok()) << text.status();
  const absl::Status status = ParseModelConfig(*text, "x.gguf").status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("hidden_size"));
}

}  // namespace
}  // namespace caravan
