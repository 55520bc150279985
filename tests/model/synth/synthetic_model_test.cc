#include "model/synth/synthetic_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/dequantize.h"
#include "model/pack/file_hash.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/synth/random_tensor.h"
#include "model/tensor_table.h"
#include "model/text_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kF8E4M3,
                            DType::kQ4_0, DType::kQ8_0, DType::kQ2_K, DType::kQ3_K,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

struct Moments {
  double mean = 0;
  double variance = 0;
};

Moments MomentsOf(const std::vector<double>& values) {
  Moments moments;
  for (const double value : values) moments.mean += value / static_cast<double>(values.size());
  for (const double value : values) {
    moments.variance += std::pow(value - moments.mean, 2) / static_cast<double>(values.size());
  }
  return moments;
}

std::vector<double> Draw(DType dtype, float mean, float stddev, int64_t count) {
  const RandomTensor tensor(dtype, 12345, mean, stddev);
  std::vector<std::byte> bytes(static_cast<size_t>(DTypeBytes(dtype, count)));
  tensor.Fill(0, count / BlockOf(dtype).values, bytes.data());
  std::vector<double> values(static_cast<size_t>(count));
  DequantizeRow(dtype, bytes.data(), count, values.data());
  return values;
}

TEST(RandomTensorTest, HasTheMeanAndVarianceThatItIsAskedFor) {
  constexpr int64_t kCount = 1 << 20;
  const double n = kCount;
  for (const DType dtype : kTypes) {
    // FP8's values are far larger than matrices': their scale is apart.
    const float stddev = dtype == DType::kF8E4M3 ? 64 : 1 / std::sqrt(18432.0f);
    const Moments moments = MomentsOf(Draw(dtype, 0, stddev, kCount));
    const double variance = std::pow(static_cast<double>(stddev), 2);
    // The half code that the codes of a sub-block are off centre has one sign for all of them: of
    // Q3_K's 16 values each pair correlates by 0.25 / 5.5, which makes the variance of a sum 1.7
    // times as large, and less in the other formats. Five standard errors.
    EXPECT_LE(std::abs(moments.mean), 5 * std::sqrt(2 * variance / n)) << DTypeName(dtype);
    // The estimate's own variance: (kurtosis - 1) / n, at most 2 / n, and that of the squared
    // scales, 0.15 for each sub-block of 32 or fewer, 4.8 / n. Besides, d's rounding: 2^-7 for
    // formats with a min, so 2^-6 of the variance.
    EXPECT_NEAR(moments.variance / variance, 1, 5 * std::sqrt(7 / n) + 0x1p-6) << DTypeName(dtype);
  }
}

TEST(RandomTensorTest, FloatsMayHaveAnyMean) {
  constexpr int64_t kCount = 1 << 16;
  const Moments moments = MomentsOf(Draw(DType::kF32, 1, 0.25f, kCount));
  EXPECT_NEAR(moments.mean, 1, 5 * 0.25 / std::sqrt(kCount));
  EXPECT_NEAR(moments.variance, 0.0625, 0.0625 * 5 * std::sqrt(2.0 / kCount));
  for (const double value : Draw(DType::kF32, 0.5f, 0, 64)) EXPECT_EQ(value, 0.5);
}

TEST(RandomTensorTest, TheBytesAreThoseOfEveryMachine) {
  // Also those of every release: a change of them is a change of kGeneration.
  const std::map<DType, std::string> expected = {
      {DType::kF32, "e7d8e64e07d7104228499eb830ef19e8"},
      {DType::kF16, "0c8cee9fd81b7c8f4f6a8a365e893e77"},
      {DType::kBF16, "201facb50edfafa6a123d58857322ade"},
      {DType::kF8E4M3, "f885ccea7f8cdf07d16aa21a4095f5d2"},
      {DType::kQ4_0, "29b85d0b0b6461be49032830cf562c50"},
      {DType::kQ8_0, "c4769a73d3a8b52da1c8c09408befac1"},
      {DType::kQ2_K, "1a12c4ead573a820ed7894602857e89d"},
      {DType::kQ3_K, "c7941ed760cdfa501d88f471513e1990"},
      {DType::kQ4_K, "48b38a2765e2ec94e4b4c95c79baa150"},
      {DType::kQ5_K, "67feba10217f63e4e2e70bdf2f382c80"},
      {DType::kQ6_K, "7beddb756861b55093f7217898b809e3"}};
  for (const DType dtype : kTypes) {
    const RandomTensor tensor(dtype, 1, 0, 0.5f);
    std::vector<std::byte> bytes(static_cast<size_t>(100 * BlockOf(dtype).bytes));
    tensor.Fill(1 << 20, 100, bytes.data());
    FileHash hash;
    hash.Add(bytes);
    EXPECT_EQ(hash.Digest(), expected.at(dtype)) << DTypeName(dtype);
  }
}

/// Small, of V3's kind, with sizes that K-quants divide.
json SmallConfig() {
  json config = DeepSeekR1Config();
  config.merge_patch(json::parse(R"json({
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256,
    "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 4,
    "first_k_dense_replace": 1, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "vocab_size": 512, "max_position_embeddings": 4096
  })json"));
  return config;
}

class SyntheticModelTest : public ::testing::Test {
 protected:
  SyntheticModel::Options Options(const json& config) const {
    SyntheticModel::Options options;
    options.config_path = dir_.Write("config.json", config.dump());
    return options;
  }
  std::unique_ptr<SyntheticModel> MustCreate(const SyntheticModel::Options& options) const {
    auto model = SyntheticModel::Create(options);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  std::unique_ptr<PackedModel> MustPack(const SyntheticModel& source, const std::string& name,
                                        int num_threads) const {
    PackOptions options;
    options.output = dir_.File(name);
    options.num_threads = num_threads;
    const absl::Status packed = Pack(source, options);
    EXPECT_TRUE(packed.ok()) << packed;
    auto model = PackedModel::Open(options.output);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  const TempDir dir_;
};

TEST_F(SyntheticModelTest, HasEveryTensorOfThePublishedShapes) {
  for (const json& config : {DeepSeekR1Config(), KimiK2Config(), DeepSeekV2LiteConfig()}) {
    const auto model = MustCreate(Options(config));
    StageSpec whole = {0, model->config().num_hidden_layers, true, true,
                       model->config().num_nextn_predict_layers > 0};
    const auto bytes = CheckTensors(*model, StageTensors(model->config(), whole));
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_TRUE(PlanPack(*model, {}, std::nullopt).ok());
    const bool is_fp8 = config.contains("quantization_config");
    EXPECT_EQ(model->Find("model.layers.1.self_attn.o_proj.weight")->dtype,
              is_fp8 ? DType::kF8E4M3 : DType::kBF16);
    EXPECT_EQ(model->Find("lm_head.weight")->dtype, DType::kBF16);
  }
}

TEST_F(SyntheticModelTest, MatricesKeepTheVarianceOfWhatTheyMap) {
  const auto model = MustCreate(Options(SmallConfig()));
  const std::string name = "model.layers.2.mlp.experts.3.down_proj.weight";
  ASSERT_EQ(model->Find(name)->dtype, DType::kF8E4M3);
  std::vector<std::byte> bytes(static_cast<size_t>(model->Find(name)->num_bytes()));
  ASSERT_TRUE(model->Read(name, absl::MakeSpan(bytes)).ok());
  std::vector<double> values(bytes.size());
  DequantizeRow(DType::kF8E4M3, bytes.data(), static_cast<int64_t>(bytes.size()), values.data());
  const std::string scale_name = ScaleName(name);
  std::vector<float> scales(4);
  ASSERT_TRUE(model
                  ->Read(scale_name, absl::MakeSpan(reinterpret_cast<std::byte*>(scales.data()),
                                                    scales.size() * sizeof(float)))
                  .ok());
  for (const float scale : scales) EXPECT_EQ(scale, scales[0]);
  const double variance = MomentsOf(values).variance * std::pow(static_cast<double>(scales[0]), 2);
  EXPECT_NEAR(256 * variance, 1, 5 * std::sqrt(2.0 / 65536) + 0.002);

  std::vector<float> norm(256);
  ASSERT_TRUE(model
                  ->Read("model.layers.2.input_layernorm.weight",
                         absl::MakeSpan(reinterpret_cast<std::byte*>(norm.data()), 4 * norm.size()))
                  .ok());
  for (const float value : norm) EXPECT_NEAR(value, 1, 3.5f * 0.02f);
}

TEST_F(SyntheticModelTest, PiecesAreThoseOfTheWhole) {
  SyntheticModel::Options options = Options(SmallConfig());
  options.types = {DType::kQ4_K, DType::kQ6_K};
  const auto model = MustCreate(options);
  std::mt19937_64 generator(7);
  for (const std::string name :
       {"model.layers.2.mlp.experts.3.up_proj.weight", "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.e_score_correction_bias"}) {
    std::vector<std::byte> whole(static_cast<size_t>(model->Find(name)->num_bytes()));
    ASSERT_TRUE(model->Read(name, absl::MakeSpan(whole)).ok());
    for (int i = 0; i < 50; ++i) {
      const size_t offset = generator() % whole.size();
      const size_t size = std::min<size_t>(generator() % 1000, whole.size() - offset);
      std::vector<std::byte> piece(size);
      ASSERT_TRUE(model->ReadPart(name, static_cast<int64_t>(offset), absl::MakeSpan(piece)).ok());
      ASSERT_TRUE(
          std::equal(piece.begin(), piece.end(), whole.begin() + static_cast<int64_t>(offset)))
          << name << " " << offset << " " << size;
    }
  }
}

TEST_F(SyntheticModelTest, TheSameBytesWhateverTheThreadsAndOthersForAnotherSeed) {
  SyntheticModel::Options options = Options(SmallConfig());
  options.types = {DType::kQ4_K, DType::kQ8_0};
  const auto model = MustCreate(options);
  const std::string one = PackManifestToJson(MustPack(*model, "one", 1)->manifest());
  EXPECT_EQ(PackManifestToJson(MustPack(*MustCreate(options), "three", 3)->manifest()), one);
  options.seed = 1;
  const auto other = MustCreate(options);
  EXPECT_NE(other->fingerprint(), model->fingerprint());
  const auto packed = MustPack(*other, "other", 1);
  for (const PackedFile& file : packed->manifest().files) {
    EXPECT_THAT(one, testing::Not(HasSubstr(file.hash))) << file.name;
  }
  EXPECT_EQ(packed->Find("model.layers.2.mlp.experts.3.up_proj.weight")->dtype, DType::kQ4_K);
  EXPECT_EQ(packed->Find("model.layers.2.mlp.shared_experts.up_proj.weight")->dtype, DType::kQ8_0);
}

TEST_F(SyntheticModelTest, TheFirstLayersAlone) {
  SyntheticModel::Options options = Options(SmallConfig());
  options.types = {DType::kQ4_K, DType::kQ8_0};
  options.num_layers = 2;
  const auto packed = MustPack(*MustCreate(options), "two", 2);
  EXPECT_EQ(packed->config().num_hidden_layers, 2);
  EXPECT_NE(packed->Find("model.layers.1.mlp.experts.15.up_proj.weight"), nullptr);
  // The layer of multi-token prediction comes behind them.
  EXPECT_NE(packed->Find("model.layers.2.eh_proj.weight"), nullptr);
  EXPECT_EQ(packed->Find("model.layers.3.input_layernorm.weight"), nullptr);
  EXPECT_NE(packed->Find("lm_head.weight"), nullptr);
  // Without a tokenizer, which whoever needs one is told.
  const absl::Status text = TextModel::Load(packed->path(), packed->config()).status();
  EXPECT_EQ(text.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(text.message()),
              AllOf(HasSubstr(packed->path()), HasSubstr("synthetic")));
}

TEST_F(SyntheticModelTest, AWrongConfigIsNamed) {
  const auto expect = [&](const SyntheticModel::Options& options, absl::StatusCode code,
                          const std::string& says) {
    const absl::Status status = SyntheticModel::Create(options).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(options.config_path), HasSubstr(says)));
  };
  SyntheticModel::Options options = Options(SmallConfig());
  options.num_layers = 5;
  expect(options, absl::StatusCode::kInvalidArgument, "has 4 layers, so not the first 5");
  json config = SmallConfig();
  config["hidden_size"] = 0;
  expect(Options(config), absl::StatusCode::kInvalidArgument, "hidden_size");
  config = SmallConfig();
  config["model_type"] = "llama";
  expect(Options(config), absl::StatusCode::kInvalidArgument, "model_type");
  expect(Options(json::array()), absl::StatusCode::kInvalidArgument, "");
  options.config_path = dir_.File("nowhere.json");
  expect(options, absl::StatusCode::kNotFound, "");
}

}  // namespace
}  // namespace caravan
