#include "model/gguf/gguf_checkpoint.h"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/model_identity.h"
#include "model/tensor_table.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

/// A checkpoint of `directory` as GGUF.
class GgufCheckpointTest : public ::testing::Test {
 protected:
  void Load(const std::string& directory) {
    source_ = MustOpenCheckpoint(directory);
    json_ = json::parse(source_->config_json());
  }

  /// The metadata of a file.
  GgufWriter Metadata(GgufAge age, bool with_mtp) {
    GgufWriter writer;
    AddGgufConfig(json_, age, with_mtp, writer);
    return writer;
  }

  /// One file of `tensors`.
  std::string WriteFile(GgufWriter writer, const RawTensors& tensors) {
    for (const auto& [name, tensor] : GgufTensors(tensors, source_->config().num_attention_heads)) {
      AddGgufTensor(name, tensor, writer);
    }
    return dir_.Write("x.gguf", writer.Bytes());
  }

  /// Null after a failure that says why.
  static std::unique_ptr<GgufCheckpoint> MustOpen(const std::string& path) {
    absl::StatusOr<std::unique_ptr<GgufCheckpoint>> checkpoint = GgufCheckpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  /// Names, types, shapes and bytes, all of them.
  static void ExpectHolds(const GgufCheckpoint& checkpoint, const RawTensors& tensors) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors) names.push_back(name);
    EXPECT_EQ(checkpoint.TensorNames(), names);
    for (const auto& [name, tensor] : tensors) {
      const TensorInfo* const info = checkpoint.Find(name);
      ASSERT_NE(info, nullptr) << name;
      EXPECT_EQ(info->dtype, tensor.dtype) << name;
      EXPECT_EQ(info->shape, tensor.shape) << name;
      ASSERT_EQ(static_cast<size_t>(info->num_bytes()), tensor.bytes.size()) << name;
      std::string bytes(tensor.bytes.size(), '\0');
      ASSERT_TRUE(
          checkpoint
              .Read(name, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()))
              .ok());
      EXPECT_TRUE(bytes == tensor.bytes) << name;
    }
  }

  void ExpectRefused(const std::string& path, const std::string& tensor, const std::string& cause) {
    const absl::Status status = GgufCheckpoint::Open(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat(path, ": tensor ", tensor, ": ", cause)));
  }

  TempDir dir_;
  std::unique_ptr<Checkpoint> source_;
  json json_;
};

TEST_F(GgufCheckpointTest, ReadsTinyR1WithItsLayerOfMultiTokenPrediction) {
  Load(kTinyR1.directory);
  const RawTensors tensors = DequantizedTensors(*source_, source_->config(), true);
  const auto checkpoint = MustOpen(WriteFile(Metadata(GgufAge::kOld, true), tensors));
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, tensors);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.num_hidden_layers, 6);
  EXPECT_EQ(config.num_nextn_predict_layers, 1);
  EXPECT_EQ(config.Mla().softmax_scale, source_->config().Mla().softmax_scale);
  EXPECT_EQ(MakeRotaryEmbedding(config).inv_freq, MakeRotaryEmbedding(source_->config()).inv_freq);
  EXPECT_EQ(checkpoint->Find("blk.0.attn_norm.weight"), nullptr);
  // It has what a stage asks for.
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    EXPECT_TRUE(CheckTensors(*checkpoint, LayerTensors(config, layer)).ok());
  }
  EXPECT_TRUE(CheckTensors(*checkpoint, MtpTensors(config)).ok());
  EXPECT_TRUE(CheckTensors(*checkpoint, EmbeddingTensors(config)).ok());
  EXPECT_TRUE(CheckTensors(*checkpoint, HeadTensors(config)).ok());
}

TEST_F(GgufCheckpointTest, ReadsEveryKindOfModel) {
  for (const char* name : {"v3-like", "kimi-k2-like", "v2-lite-like"}) {
    Load(SmallGoldenModel(name).directory);
    const RawTensors tensors = DequantizedTensors(*source_, source_->config(), false);
    const auto checkpoint = MustOpen(WriteFile(Metadata(GgufAge::kNew, false), tensors));
    ASSERT_NE(checkpoint, nullptr) << name;
    ExpectHolds(*checkpoint, tensors);
  }
}

TEST_F(GgufCheckpointTest, PutsTheHalvesOfKvBTogether) {
  Load(SmallGoldenModel("v3-like").directory);
  const ModelConfig& config = source_->config();
  RawTensors expected = DequantizedTensors(*source_, config, false);
  const RawTensors halves = SplitKvB(expected, config);
  for (auto& [name, tensor] : expected) {
    if (!absl::StrContains(name, "kv_b_proj")) continue;
    std::string floats;
    for (size_t i = 0; i < tensor.bytes.size(); i += 2) {
      floats += std::string(2, '\0') + tensor.bytes.substr(i, 2);  // a BF16 as a float
    }
    tensor.dtype = DType::kF32;
    tensor.bytes = std::move(floats);
  }
  const auto checkpoint = MustOpen(WriteFile(Metadata(GgufAge::kNew, false), halves));
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, expected);

  // Also in pieces that begin and end anywhere.
  const std::string name = "model.layers.3.self_attn.kv_b_proj.weight";
  const std::string& whole = expected.at(name).bytes;
  std::string pieces(whole.size(), '\0');
  constexpr size_t kPiece = 1237;
  for (size_t at = 0; at < pieces.size(); at += kPiece) {
    const absl::Span<std::byte> piece(reinterpret_cast<std::byte*>(pieces.data()) + at,
                                      std::min(kPiece, pieces.size() - at));
    ASSERT_TRUE(checkpoint->ReadPart(name, static_cast<int64_t>(at), piece).ok());
  }
  EXPECT_TRUE(pieces == whole);
}

TEST_F(GgufCheckpointTest, TakesKvBWholeWhereTheFileHasBoth) {
  Load(SmallGoldenModel("v3-like").directory);
  const RawTensors whole = DequantizedTensors(*source_, source_->config(), false);
  RawTensors both = SplitKvB(whole, source_->config());
  both.insert(whole.begin(), whole.end());
  const auto checkpoint = MustOpen(WriteFile(Metadata(GgufAge::kOld, false), both));
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, whole);
}

TEST_F(GgufCheckpointTest, ReadsEveryBlockFormatBitForBit) {
  Load(SmallGoldenModel("v3-like").directory);
  for (const char* size : {"hidden_size", "intermediate_size", "moe_intermediate_size",
                           "q_lora_rank", "kv_lora_rank"}) {
    json_[size] = 256;
  }
  const auto config = ParseModelConfig(json_.dump(), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto dtype_of = [](const std::string& name) {
    const std::vector<std::pair<const char*, DType>> dtypes = {
        {"o_proj", DType::kQ4_0},         {"q_a_proj", DType::kQ6_K},
        {"kv_b_proj", DType::kQ8_0},      {"mlp.gate.", DType::kF32},
        {"shared_experts", DType::kQ5_K}, {"experts.", DType::kQ4_K},
        {"mlp.down_proj", DType::kQ3_K},  {"mlp.up_proj", DType::kQ2_K},
        {"embed_tokens", DType::kF16},
    };
    // Down projections have a type of their own, as in most files.
    if (absl::StrContains(name, ".experts.") && absl::StrContains(name, "down_proj")) {
      return DType::kQ6_K;
    }
    for (const auto& [part, dtype] : dtypes) {
      if (absl::StrContains(name, part)) return dtype;
    }
    return DType::kBF16;
  };
  constexpr uint64_t kSeed = 20240611;
  const RawTensors tensors = RandomTensors(*config, dtype_of, kSeed);
  const auto checkpoint = MustOpen(WriteFile(Metadata(GgufAge::kOld, false), tensors));
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, tensors);
}

TEST_F(GgufCheckpointTest, ReadsASplitSetFromAnyOfItsFiles) {
  Load(SmallGoldenModel("v3-like").directory);
  const RawTensors tensors = DequantizedTensors(*source_, source_->config(), false);
  constexpr int kCount = 4;
  std::vector<GgufWriter> writers(kCount);
  writers[0] = Metadata(GgufAge::kNew, false);  // and no tensors
  int turn = 0;
  for (const auto& [name, tensor] : GgufTensors(tensors, source_->config().num_attention_heads)) {
    AddGgufTensor(name, tensor, writers[static_cast<size_t>(1 + turn++ % (kCount - 1))]);
  }
  std::string path;
  std::string first;
  for (int no = 0; no < kCount; ++no) {
    GgufWriter& writer = writers[static_cast<size_t>(no)];
    writer.Set("split.no", static_cast<uint16_t>(no));
    writer.Set("split.count", uint16_t{kCount});
    writer.Set("split.tensors.count", int32_t{turn});
    path = dir_.Write(absl::StrFormat("x-%05d-of-%05d.gguf", no + 1, kCount), writer.Bytes());
    if (no == 0) first = path;
  }
  const auto checkpoint = MustOpen(path);
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, tensors);
  EXPECT_EQ(*checkpoint->metadata().String("general.name"), "a test's model");

  // Whichever of its files is named, what is kept for longer is kept for all of them.
  const std::string identity = *ModelIdentity(*checkpoint, path);
  EXPECT_EQ(*ModelIdentity(*checkpoint, first), identity);
  namespace fs = std::filesystem;
  fs::last_write_time(first, fs::last_write_time(first) - std::chrono::hours(1));
  EXPECT_NE(*ModelIdentity(*checkpoint, path), identity);
  fs::remove(first);
  EXPECT_EQ(ModelIdentity(*checkpoint, path).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GgufCheckpointTest, LeavesCopiesAndFurtherPredictionsOut) {
  Load(SmallGoldenModel("v3-like").directory);
  json_["num_nextn_predict_layers"] = 2;
  const auto config = ParseModelConfig(json_.dump(), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  const RawTensors tensors = RandomTensors(
      *config, [](const std::string&) { return DType::kF16; }, 20240612);
  GgufWriter writer = Metadata(GgufAge::kNew, true);
  AddGgufTensor("blk.4.nextn.embed_tokens.weight", tensors.at("model.embed_tokens.weight"), writer);
  AddGgufTensor("blk.4.nextn.shared_head_head.weight", tensors.at("lm_head.weight"), writer);
  AddGgufTensor("blk.5.attn_norm.weight", tensors.at("model.norm.weight"), writer);
  const auto checkpoint = MustOpen(WriteFile(writer, tensors));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->config().num_hidden_layers, 4);
  ExpectHolds(*checkpoint, tensors);
}

TEST_F(GgufCheckpointTest, RefusesTensorsThatTheConfigDoesNotAskFor) {
  Load(SmallGoldenModel("v3-like").directory);
  const RawTensors tensors = DequantizedTensors(*source_, source_->config(), false);
  const auto with_changed = [&](const std::string& name,
                                const std::function<void(RawTensor&)>& change) {
    RawTensors changed = tensors;
    change(changed.at(name));
    return WriteFile(Metadata(GgufAge::kNew, false), changed);
  };
  const auto without = [&](const std::string& name) {
    RawTensors changed = tensors;
    EXPECT_EQ(changed.erase(name), 1u) << name;
    return WriteFile(Metadata(GgufAge::kNew, false), changed);
  };
  ExpectRefused(without("model.norm.weight"), "output_norm.weight", "is missing");
  ExpectRefused(without("model.layers.3.self_attn.o_proj.weight"), "blk.3.attn_output.weight",
                "is missing");
  ExpectRefused(without("model.layers.2.self_attn.kv_b_proj.weight"), "blk.2.attn_kv_b.weight",
                "is missing");
  ExpectRefused(without("model.layers.1.mlp.experts.7.up_proj.weight"), "blk.1.ffn_up_exps.weight",
                "has shape [15, 64, 128], but the metadata ask for [16, 64, 128]");
  ExpectRefused(
      with_changed("model.layers.0.mlp.gate_proj.weight",
                   [](RawTensor& tensor) { std::swap(tensor.shape[0], tensor.shape[1]); }),
      "blk.0.ffn_gate.weight", "has shape [128, 256], but the metadata ask for [256, 128]");
  ExpectRefused(with_changed("model.layers.0.input_layernorm.weight",
                             [](RawTensor& tensor) {
                               tensor.dtype = DType::kQ8_0;
                               tensor.bytes = std::string(128 / 32 * 34, 'x');
                             }),
                "blk.0.attn_norm.weight", "has type Q8_0, but a vector must be");
  GgufWriter biased = Metadata(GgufAge::kNew, false);
  AddGgufTensor("blk.0.attn_q_a.bias", tensors.at("model.norm.weight"), biased);
  ExpectRefused(WriteFile(biased, tensors), "blk.0.attn_q_a.bias", "is none that a model");
  RawTensors half = SplitKvB(tensors, source_->config());
  const auto v_b = half.extract("model.layers.0.self_attn.v_b_proj.weight");
  ExpectRefused(WriteFile(Metadata(GgufAge::kNew, false), half), "blk.0.attn_v_b.weight",
                "is missing");
}

TEST_F(GgufCheckpointTest, NamesAFieldThatTheConfigRefuses) {
  Load(SmallGoldenModel("v3-like").directory);
  const RawTensors tensors = DequantizedTensors(*source_, source_->config(), false);
  json_["num_experts_per_tok"] = 17;  // of 16
  const std::string path = WriteFile(Metadata(GgufAge::kNew, false), tensors);
  const absl::Status status = GgufCheckpoint::Open(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_experts_per_tok"));
}

TEST_F(GgufCheckpointTest, SurvivesMutatedHeaders) {
  Load(SmallGoldenModel("v3-like").directory);
  for (const auto& [size, value] :
       std::vector<std::pair<const char*, int>>{{"vocab_size", 8},
                                                {"hidden_size", 8},
                                                {"intermediate_size", 8},
                                                {"moe_intermediate_size", 4},
                                                {"num_hidden_layers", 2},
                                                {"num_attention_heads", 2},
                                                {"num_key_value_heads", 2},
                                                {"kv_lora_rank", 8},
                                                {"q_lora_rank", 8},
                                                {"qk_rope_head_dim", 2},
                                                {"qk_nope_head_dim", 4},
                                                {"v_head_dim", 4},
                                                {"n_routed_experts", 8},
                                                {"num_experts_per_tok", 2}}) {
    json_[size] = value;
  }
  const auto config = ParseModelConfig(json_.dump(), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  constexpr uint64_t kSeed = 20240613;
  const RawTensors tensors = RandomTensors(
      *config, [](const std::string&) { return DType::kF16; }, kSeed);
  GgufWriter writer = Metadata(GgufAge::kNew, false);
  for (const auto& [name, tensor] : GgufTensors(tensors, config->num_attention_heads)) {
    AddGgufTensor(name, tensor, writer);
  }
  const std::string valid = writer.Bytes();
  const size_t header_bytes = valid.rfind("blk.1.") + 60;
  std::mt19937_64 random(kSeed);
  int opened = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = valid;
    for (uint64_t edits = 1 + random() % 2; edits > 0; --edits) {
      const size_t at = random() % header_bytes;
      bytes[at] = static_cast<char>(random() % 2 == 0 ? random() : random() % 16);
    }
    const auto checkpoint = GgufCheckpoint::Open(dir_.Write("x.gguf", bytes));
    if (!checkpoint.ok()) {
      EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument)
          << checkpoint.status() << ", round " << round << " of seed " << kSeed;
      continue;
    }
    ++opened;
    for (const std::string& name : (*checkpoint)->TensorNames()) {
      std::vector<std::byte> out(static_cast<size_t>((*checkpoint)->Find(name)->num_bytes()));
      EXPECT_TRUE((*checkpoint)->Read(name, absl::MakeSpan(out)).ok())
          << "round " << round << " of seed " << kSeed;
    }
  }
  EXPECT_GT(opened, 0);  // Some edits touch only general.name, a weight's place, ...
}

}  // namespace
}  // namespace caravan
