#include "model/tensor_table.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/model/fake_tensor_source.h"
#include "tests/model/published_configs.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig Parse(const nlohmann::json& config) {
  const absl::StatusOr<ModelConfig> parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *parsed;
}

StageSpec WholeModel(const ModelConfig& config) {
  return {
      .first_layer = 0, .end_layer = config.num_hidden_layers, .embeds = true, .has_head = true};
}

int64_t NumElements(const std::vector<TensorSpec>& specs) {
  int64_t sum = 0;
  for (const TensorSpec& spec : specs) sum += TensorInfo{DType::kF32, spec.shape}.num_elements();
  return sum;
}

TEST(TensorTableTest, CountsThePublishedModelsParameters) {
  for (const auto& [config, num_parameters] : {std::pair{DeepSeekR1Config(), 671026419200},
                                               {KimiK2Config(), 1026408232448},
                                               {DeepSeekV2Config(), 235741434880},
                                               {DeepSeekV2LiteConfig(), 15706484224}}) {
    const ModelConfig parsed = Parse(config);
    EXPECT_EQ(NumElements(StageTensors(parsed, WholeModel(parsed))), num_parameters)
        << config.dump();
  }
}

TEST(TensorTableTest, ClassesTheWeightsOfR1) {
  const ModelConfig config = Parse(DeepSeekR1Config());
  std::map<TensorClass, int64_t> elements;
  for (const TensorSpec& spec : LayerTensors(config, 3)) {
    elements[spec.tensor_class] += NumElements({spec});
  }
  EXPECT_EQ(elements[TensorClass::kAttention], 187105280);
  EXPECT_EQ(elements[TensorClass::kRoutedExpert], int64_t{256} * 3 * 7168 * 2048);
  EXPECT_EQ(elements[TensorClass::kSharedExpert], int64_t{3} * 7168 * 2048);
  EXPECT_EQ(elements[TensorClass::kRouter], int64_t{256} * 7168);
  EXPECT_EQ(elements[TensorClass::kNorm], 2 * 7168 + 1536 + 512 + 256);
  EXPECT_EQ(elements.count(TensorClass::kDenseFfn), 0u);
  elements.clear();
  for (const TensorSpec& spec : LayerTensors(config, 2)) {
    elements[spec.tensor_class] += NumElements({spec});
  }
  EXPECT_EQ(elements[TensorClass::kDenseFfn], int64_t{3} * 7168 * 18432);
  EXPECT_EQ(elements.count(TensorClass::kRoutedExpert), 0u);
}

TEST(TensorTableTest, CountsTheLayerOfMultiTokenPrediction) {
  const ModelConfig config = Parse(DeepSeekR1Config());
  ASSERT_EQ(config.num_nextn_predict_layers, 1);
  const std::vector<TensorSpec> mtp = MtpTensors(config);
  EXPECT_EQ(NumElements(mtp), NumElements(LayerTensors(config, 60)) + 2 * 7168 * 7168 + 3 * 7168);
  for (const TensorSpec& spec : mtp) {
    EXPECT_TRUE(absl::StartsWith(spec.name, "model.layers.61.")) << spec.name;
  }
  // A stage that drafts has them, and the embedding, beside its own.
  const StageSpec last = {.first_layer = 60, .end_layer = 61, .embeds = false, .has_head = true};
  StageSpec drafting = last;
  drafting.drafts = true;
  EXPECT_EQ(NumElements(StageTensors(config, drafting)), NumElements(StageTensors(config, last)) +
                                                             NumElements(mtp) +
                                                             NumElements(EmbeddingTensors(config)));
}

TEST(TensorTableTest, NamesWhatEachVariantHas) {
  std::set<std::string> r1;
  for (const TensorSpec& spec : LayerTensors(Parse(DeepSeekR1Config()), 3)) r1.insert(spec.name);
  EXPECT_EQ(r1.count("model.layers.3.self_attn.q_b_proj.weight"), 1u);
  EXPECT_EQ(r1.count("model.layers.3.mlp.gate.e_score_correction_bias"), 1u);
  EXPECT_EQ(r1.count("model.layers.3.mlp.experts.255.down_proj.weight"), 1u);
  EXPECT_EQ(r1.count("model.layers.3.self_attn.q_proj.weight"), 0u);
  std::set<std::string> lite;
  for (const TensorSpec& spec : LayerTensors(Parse(DeepSeekV2LiteConfig()), 1)) {
    lite.insert(spec.name);
  }
  EXPECT_EQ(lite.count("model.layers.1.self_attn.q_proj.weight"), 1u);
  EXPECT_EQ(lite.count("model.layers.1.self_attn.q_a_proj.weight"), 0u);
  EXPECT_EQ(lite.count("model.layers.1.mlp.gate.e_score_correction_bias"), 0u);
}

TEST(TensorTableTest, ListsATiedProjectionOnce) {
  nlohmann::json json = DeepSeekR1Config();
  json["tie_word_embeddings"] = true;
  const ModelConfig config = Parse(json);
  EXPECT_EQ(HeadTensors(config).back().name, "model.embed_tokens.weight");
  std::multiset<std::string> names;
  for (const TensorSpec& spec : StageTensors(config, WholeModel(config))) names.insert(spec.name);
  EXPECT_EQ(names.count("model.embed_tokens.weight"), 1u);
  EXPECT_EQ(names.count("model.norm.weight"), 1u);
  EXPECT_EQ(names.count("lm_head.weight"), 0u);
  // So does a last stage that drafts with it.
  names.clear();
  for (const TensorSpec& spec : StageTensors(config, {60, 61, false, true, true})) {
    names.insert(spec.name);
  }
  EXPECT_EQ(names.count("model.embed_tokens.weight"), 1u);
  EXPECT_EQ(names.count("model.norm.weight"), 1u);
}

TEST(TensorTableTest, SplitsAStageAtItsBounds) {
  const ModelConfig config = Parse(DeepSeekR1Config());
  const std::vector<TensorSpec> middle =
      StageTensors(config, {.first_layer = 2, .end_layer = 4, .embeds = false, .has_head = false});
  for (const TensorSpec& spec : middle) {
    EXPECT_TRUE(absl::StartsWith(spec.name, "model.layers.2.") ||
                absl::StartsWith(spec.name, "model.layers.3."))
        << spec.name;
  }
  EXPECT_EQ(middle.size(), LayerTensors(config, 2).size() + LayerTensors(config, 3).size());
}

/// The names of `specs`, and of the scales that `source` has beside them.
std::multiset<std::string> NamesOf(const TensorSource& source,
                                   const std::vector<TensorSpec>& specs) {
  std::multiset<std::string> names;
  for (const TensorSpec& spec : specs) {
    names.insert(spec.name);
    if (source.Find(ScaleName(spec.name)) != nullptr) names.insert(ScaleName(spec.name));
  }
  return names;
}

TEST(TensorTableTest, CoversTheFixturesExactly) {
  for (const char* directory :
       {"models/tiny-r1", "tests/data/goldens/v3-like", "tests/data/goldens/kimi-k2-like",
        "tests/data/goldens/v2-lite-like"}) {
    const auto checkpoint = Checkpoint::Open(absl::StrCat(CARAVAN_SOURCE_DIR "/", directory));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const ModelConfig& config = (*checkpoint)->config();
    const std::vector<TensorSpec> specs = StageTensors(config, WholeModel(config));
    EXPECT_TRUE(CheckTensors(**checkpoint, specs).ok()) << directory;
    // All that the file holds, but for the layer of multi-token prediction; with drafts that too,
    // but for its copies of embedding and head.
    const std::string mtp = absl::StrCat("model.layers.", config.num_hidden_layers, ".");
    std::multiset<std::string> expected;
    std::multiset<std::string> with_mtp;
    for (const std::string& name : (*checkpoint)->TensorNames()) {
      if (name == mtp + "embed_tokens.weight" || name == mtp + "shared_head.head.weight") continue;
      with_mtp.insert(name);
      if (!absl::StartsWith(name, mtp)) expected.insert(name);
    }
    EXPECT_EQ(NamesOf(**checkpoint, specs), expected) << directory;
    if (config.num_nextn_predict_layers == 0) continue;
    StageSpec drafting = WholeModel(config);
    drafting.drafts = true;
    const std::vector<TensorSpec> all = StageTensors(config, drafting);
    EXPECT_TRUE(CheckTensors(**checkpoint, all).ok()) << directory;
    EXPECT_EQ(NamesOf(**checkpoint, all), with_mtp) << directory;
  }
}

class CheckTensorsTest : public ::testing::Test {
 protected:
  CheckTensorsTest() { source_.Add(specs_, DType::kF8E4M3); }

  void ExpectRefused(const std::string& name, const std::string& cause) {
    const absl::Status status = CheckTensors(source_, specs_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("tensor " + name + ":"), HasSubstr(cause)));
  }

  // Neither side of the matrix is a multiple of the block.
  const std::vector<TensorSpec> specs_ = {{"w", {200, 300}, TensorClass::kAttention},
                                          {"n", {7}, TensorClass::kNorm}};
  FakeTensorSource source_;
};

TEST_F(CheckTensorsTest, CountsBytesInMemory) {
  // 200 rows become 13 tiles; 6 scales, and 7 values of a norm in F32, take a line of 64 bytes
  // each.
  EXPECT_THAT(source_.tensors["w_scale_inv"].shape, ElementsAre(2, 3));
  EXPECT_EQ(*CheckTensors(source_, specs_), 208 * 300 + 64 + 64);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    FakeTensorSource plain;
    plain.Add(specs_, dtype);
    EXPECT_EQ(*CheckTensors(plain, specs_), DTypeBytes(dtype, 208 * 300) + 64);
  }
}

TEST_F(CheckTensorsTest, NamesWhatIsMissing) {
  source_.tensors.erase("w_scale_inv");
  ExpectRefused("w_scale_inv", "is missing");
  source_.tensors.erase("w");
  ExpectRefused("w", "is missing");
}

TEST_F(CheckTensorsTest, RefusesAnotherShape) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{300, 200}, {60000}, {200, 300, 1}, {}}) {
    source_.tensors["w"].shape = shape;
    ExpectRefused("w", "asks for [200, 300]");
  }
}

TEST_F(CheckTensorsTest, RefusesMalformedScales) {
  source_.tensors["w_scale_inv"].shape = {1, 2};
  ExpectRefused("w_scale_inv", "has shape [1, 2], but the config asks for [2, 3]");
  source_.tensors["w_scale_inv"] = {DType::kBF16, {2, 3}};
  ExpectRefused("w_scale_inv", "has dtype BF16");
}

TEST_F(CheckTensorsTest, RefusesScalesBesideAnUnquantizedMatrix) {
  source_.tensors["w"].dtype = DType::kBF16;
  ExpectRefused("w_scale_inv", "w has dtype BF16");
}

TEST_F(CheckTensorsTest, RefusesTypesThatNoKernelTakes) {
  source_.tensors["n"].dtype = DType::kF8E4M3;
  ExpectRefused("n", "has dtype F8_E4M3");
  source_.tensors["w"].dtype = DType::kI32;
  ExpectRefused("w", "has dtype I32");
}

}  // namespace
}  // namespace caravan
