// A model that is run as it is, against its pack of the same formats: the same weights, laid out
// alike, and so the same results to the bit.

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"
#include "model/gguf/gguf_checkpoint.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/synth/synthetic_model.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"
#include "worker/named_matrices.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using nlohmann::json;

bool Continue(int64_t, int64_t) { return true; }

/// A matrix's bytes, as it lies in memory.
absl::string_view BytesOf(const Matrix& matrix) {
  const TensorInfo info = {matrix.dtype, {matrix.rows, matrix.cols}, matrix.layout};
  return {reinterpret_cast<const char*>(matrix.data), static_cast<size_t>(info.num_bytes())};
}

class UnpackedModelTest : public ::testing::Test {
 protected:
  /// A dense layer and one of experts, narrow. The router, kv_a_proj and the projection have rows
  /// that fill no last tile; the projection is read in several parts.
  static json Narrow(json config) {
    config.merge_patch(json::parse(R"json({
      "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256,
      "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
      "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 32,
      "vocab_size": 20489, "num_hidden_layers": 2, "n_routed_experts": 8, "n_group": 1,
      "topk_group": 1, "num_experts_per_tok": 2, "num_nextn_predict_layers": 0,
      "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1})json"));
    if (!config["q_lora_rank"].is_null()) config["q_lora_rank"] = 256;
    return config;
  }

  std::unique_ptr<SyntheticModel> Synthetic(const json& config, const PackTypes& types) const {
    SyntheticModel::Options options;
    options.config_path = dir_.Write("config.json", config.dump());
    options.types = types;
    return *SyntheticModel::Create(options);
  }

  /// The same weights in a GGUF file.
  std::unique_ptr<StoredModel> AsGguf(const SyntheticModel& model) const {
    RawTensors tensors;
    for (const std::string& name : model.TensorNames()) {
      const TensorInfo& info = *model.Find(name);
      std::string bytes(static_cast<size_t>(info.num_bytes()), '\0');
      EXPECT_TRUE(
          model.Read(name, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()))
              .ok());
      tensors[name] = {info.dtype, info.shape, std::move(bytes)};
    }
    GgufWriter writer;
    AddGgufConfig(json::parse(model.config_json()), GgufAge::kNew, /*with_mtp=*/false, writer);
    // A pack has a tokenizer, whosever it is.
    AddGgufTokenizer(*ReadJsonFile(kTinyR1.directory + "/tokenizer.json"),
                     model.config().vocab_size, "deepseek-v3", writer);
    for (const auto& [name, tensor] : GgufTensors(tensors, model.config().num_attention_heads)) {
      AddGgufTensor(name, tensor, writer);
    }
    return *GgufCheckpoint::Open(dir_.Write("x.gguf", writer.Bytes()));
  }

  std::unique_ptr<PackedModel> PackKept(const StoredModel& model) const {
    PackOptions options;
    options.output = dir_.File("packed");
    EXPECT_TRUE(Pack(model, options).ok());
    return *PackedModel::Open(options.output);
  }

  static StageSpec Whole(const ModelConfig& config) {
    return {0, config.num_hidden_layers, true, true, config.num_nextn_predict_layers > 0};
  }

  static void ExpectSameWeights(const StoredModel& model, const StoredModel& packed,
                                const StageSpec& spec) {
    const ModelConfig& config = model.config();
    const auto weights = *StageWeights::Load(config, spec, model, Continue);
    const auto packed_weights = *StageWeights::Load(config, spec, packed, Continue);
    const auto matrices = NamedMatrices(config, spec, *weights);
    const auto packed_matrices = NamedMatrices(config, spec, *packed_weights);
    ASSERT_EQ(matrices.size(), packed_matrices.size());
    for (size_t i = 0; i < matrices.size(); ++i) {
      const auto& [name, matrix] = matrices[i];
      const Matrix& other = packed_matrices[i].second;
      EXPECT_EQ(name, packed_matrices[i].first);
      EXPECT_EQ(matrix.dtype, other.dtype) << name;
      EXPECT_EQ(matrix.layout, other.layout) << name;
      EXPECT_TRUE(BytesOf(matrix) == BytesOf(other)) << name;
      ASSERT_EQ(matrix.scale_inv == nullptr, other.scale_inv == nullptr) << name;
      if (matrix.scale_inv == nullptr) continue;
      const int64_t scales = Fp8Blocks(matrix.rows) * Fp8Blocks(matrix.cols);
      EXPECT_EQ(std::memcmp(matrix.scale_inv, other.scale_inv,
                            static_cast<size_t>(scales) * sizeof(float)),
                0)
          << name;
    }
    // What a planner reckons with.
    const int64_t counted = *CheckTensors(model, StageTensors(config, spec));
    EXPECT_EQ(weights->num_bytes(), counted);
    EXPECT_EQ(packed_weights->num_bytes(), counted);
  }

  /// Of some tokens.
  static std::string Logits(const StoredModel& model, std::unique_ptr<Backend> backend) {
    Stage::Options options;
    options.name = "worker";
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = 32;
    const auto stage =
        *Stage::Create(model.config(), {0, model.config().num_hidden_layers, true, true}, model,
                       std::move(backend), options, Continue);
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    for (uint32_t i = 0; i < 20; ++i) slice.add_token_ids(i * 7919 % 2000);
    slice.add_kv_blocks(0);
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    step = stage->Run(std::move(step));
    EXPECT_FALSE(step.has_error()) << step.error().message();
    return step.results(0).logits();
  }

  void ExpectEqualsItsPack(const StoredModel& model) const {
    const auto packed = PackKept(model);
    ExpectSameWeights(model, *packed, Whole(model.config()));
    const std::string logits = Logits(model, *MakeCpuBackend({}));
    EXPECT_FALSE(logits.empty());
    EXPECT_TRUE(logits == Logits(*packed, *MakeCpuBackend({})));
  }

  const TempDir dir_;
};

TEST_F(UnpackedModelTest, ACheckpointInFp8AndBf16) {
  ExpectEqualsItsPack(*MustOpenCheckpoint(kTinyR1.directory));
}

TEST_F(UnpackedModelTest, MatricesThatFillNoLastTile) {
  ExpectEqualsItsPack(*Synthetic(Narrow(DeepSeekR1Config()), {}));
}

TEST_F(UnpackedModelTest, AGgufFileInBlocks) {
  struct Case {
    json config;
    PackTypes types;
  };
  for (const auto& [config, types] : {Case{DeepSeekR1Config(), {DType::kQ4_K, DType::kQ8_0}},
                                      Case{KimiK2Config(), {DType::kQ2_K, DType::kQ6_K}},
                                      Case{DeepSeekV2LiteConfig(), {DType::kQ3_K, DType::kQ4_0}},
                                      Case{DeepSeekR1Config(), {DType::kQ5_K, DType::kF16}}}) {
    SCOPED_TRACE(DescribePackTypes(types));
    json narrow = Narrow(config);
    narrow.erase("quantization_config");
    ExpectEqualsItsPack(*AsGguf(*Synthetic(narrow, types)));
    std::filesystem::remove_all(dir_.File("packed"));
  }
}

TEST_F(UnpackedModelTest, TheReferenceBackendTakesItToo) {
  const auto model = Synthetic(Narrow(KimiK2Config()), {DType::kQ4_K, DType::kQ8_0});
  const auto packed = PackKept(*model);
  const std::string logits = Logits(*model, MakeReferenceBackend());
  EXPECT_TRUE(logits == Logits(*packed, MakeReferenceBackend()));
}

TEST_F(UnpackedModelTest, ATiedProjectionIsMultipliedAlikeWhateverTheStages) {
  json config = Narrow(DeepSeekR1Config());
  config["tie_word_embeddings"] = true;
  const auto model = Synthetic(config, {});
  const auto packed = PackKept(*model);
  for (const StageSpec& spec : {Whole(model->config()), StageSpec{1, 2, false, true, false}}) {
    ExpectSameWeights(*model, *packed, spec);
    const auto weights = *StageWeights::Load(model->config(), spec, *model, Continue);
    EXPECT_EQ(weights->lm_head.layout, MatrixLayout::kRowMajor);
  }
  // Also where only the last layers are packed.
  const PackManifest part = *PlanPack(*model, {}, std::pair(1, 2));
  const PackedFile& head = part.files.back();
  EXPECT_EQ(head.tensors.back().name, "model.embed_tokens.weight");
  EXPECT_EQ(head.tensors.back().info.layout, MatrixLayout::kRowMajor);
}

}  // namespace
}  // namespace caravan
