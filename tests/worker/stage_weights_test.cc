#include "worker/stage_weights.h"

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tiled/tile_layout.h"
#include "model/synth/synthetic_model.h"
#include "tests/model/published_configs.h"
#include "tests/support/fake_card.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr char kExpert[] = "model.layers.1.mlp.experts.2.up_proj.weight";

/// Passes reads on, but for one tensor.
class BrokenSource : public TensorSource {
 public:
  BrokenSource(const TensorSource& source, std::string broken)
      : source_(source), broken_(std::move(broken)) {}

  const TensorInfo* Find(absl::string_view name) const override { return source_.Find(name); }
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    if (name == broken_) return absl::DataLossError("the disk failed");
    return source_.ReadPart(name, offset, out);
  }

 private:
  const TensorSource& source_;
  const std::string broken_;
};

/// FP8, with an embedding and a head of 20 MiB each: they are read in several parts.
class StageWeightsTest : public ::testing::Test {
 protected:
  StageWeightsTest() {
    nlohmann::json config = DeepSeekR1Config();
    config.merge_patch(nlohmann::json::parse(R"json({
      "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256,
      "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
      "kv_lora_rank": 128, "q_lora_rank": 256, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
      "v_head_dim": 32, "vocab_size": 20480, "num_hidden_layers": 2, "n_routed_experts": 8,
      "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
      "num_nextn_predict_layers": 0})json"));
    SyntheticModel::Options options;
    options.config_path = dir_.Write("config.json", config.dump());
    source_ = *SyntheticModel::Create(options);
  }

  absl::StatusOr<std::unique_ptr<StageWeights>> Load(const TensorSource& source,
                                                     const StageWeights::Progress& progress) const {
    return StageWeights::Load(source_->config(), {0, 2, /*embeds=*/true, /*has_head=*/true}, source,
                              progress);
  }

  /// Whether `loaded` holds the source's bytes.
  bool IsWhole(const std::string& name, const void* loaded) const {
    std::vector<std::byte> bytes(static_cast<size_t>(source_->Find(name)->num_bytes()));
    EXPECT_TRUE(source_->Read(name, absl::MakeSpan(bytes)).ok());
    return std::memcmp(loaded, bytes.data(), bytes.size()) == 0;
  }

  /// The same of a matrix, in rows.
  bool IsWhole(const std::string& name, const Matrix& loaded) const {
    if (loaded.layout == MatrixLayout::kRowMajor) return IsWhole(name, loaded.data);
    std::vector<std::byte> rows(static_cast<size_t>(source_->Find(name)->num_bytes()));
    UntileMatrix(loaded.dtype, loaded.rows, loaded.cols, loaded.data, rows.data());
    return IsWhole(name, rows.data());
  }

  const TempDir dir_;
  std::unique_ptr<SyntheticModel> source_;
};

TEST_F(StageWeightsTest, EveryTensorIsWholeAndInItsPlace) {
  const auto weights = Load(*source_, [](int64_t, int64_t) { return true; });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(IsWhole("model.embed_tokens.weight", (*weights)->embedding));
  EXPECT_TRUE(IsWhole("lm_head.weight", (*weights)->lm_head));
  EXPECT_TRUE(IsWhole("model.norm.weight", (*weights)->final_layernorm));
  const LayerWeights& layer = (*weights)->layers[1];
  EXPECT_TRUE(IsWhole("model.layers.1.mlp.gate.weight", layer.router));
  EXPECT_TRUE(IsWhole("model.layers.1.self_attn.kv_b_proj.weight", layer.kv_b_proj));
  EXPECT_TRUE(
      IsWhole("model.layers.1.mlp.gate.e_score_correction_bias", layer.e_score_correction_bias));
  EXPECT_TRUE(IsWhole(kExpert, layer.experts[2].up));
  EXPECT_TRUE(IsWhole(std::string(kExpert) + "_scale_inv", layer.experts[2].up.scale_inv));
}

TEST_F(StageWeightsTest, WhatIsHeldIsSharedAndNotRead) {
  const auto go_on = [](int64_t, int64_t) { return true; };
  const auto first = *Load(*source_, go_on);
  WeightParts held = first->held();
  EXPECT_EQ(held.size(), 5u);  // embedding, a dense layer, one and its experts, head
  // Of the last layer and the head nothing is left to read.
  const BrokenSource broken(*source_, kExpert);
  int64_t total = -1;
  const auto second = StageWeights::Load(
      source_->config(), {1, 2, /*embeds=*/false, /*has_head=*/true}, broken,
      [&](int64_t, int64_t total_bytes) {
        total = total_bytes;
        return true;
      },
      HostMemory(), StageWeights::Experts::kLoad, &held);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(total, 0);
  EXPECT_EQ((*second)->layers[0].experts[2].up.data, first->layers[1].experts[2].up.data);
  EXPECT_EQ((*second)->lm_head.data, first->lm_head.data);
  EXPECT_LT((*second)->num_bytes(), first->num_bytes());
  // Experts are parts of their own: one that leaves them on disk shares the rest of the layer.
  const auto left = StageWeights::Load(source_->config(), {1, 2, false, false}, *source_, go_on,
                                       HostMemory(), StageWeights::Experts::kLeave, &held);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_TRUE((*left)->layers[0].experts.empty());
  EXPECT_EQ((*left)->layers[0].router.data, first->layers[1].router.data);
  EXPECT_FALSE((*left)->held().contains({.kind = WeightPartId::Kind::kExperts, .layer = 1}));
}

TEST_F(StageWeightsTest, AsManyPartsAreReadAsHaveRoom) {
  const std::vector<WeightPartId> ids = PartsOf(source_->config(), {0, 2, true, true}, true);
  const auto go_on = [](int64_t, int64_t) { return true; };
  WeightParts all;
  ASSERT_TRUE(LoadWeightParts(source_->config(), ids, *source_, all, HostMemory(), go_on).ok());
  ASSERT_EQ(all.size(), 5u);
  const int64_t two = all.at(ids[0])->num_bytes() + all.at(ids[1])->num_bytes();
  WeightParts some;
  const auto load_two = [&] {
    return LoadWeightParts(source_->config(), ids, *source_, some, HostMemory(), go_on, two);
  };
  ASSERT_TRUE(load_two().ok());
  EXPECT_EQ(some.size(), 2u);
  EXPECT_TRUE(some.contains(ids[1]));
  // What is there takes no room.
  ASSERT_TRUE(load_two().ok());
  EXPECT_TRUE(some.contains(ids[2]));
}

TEST_F(StageWeightsTest, WhatWasReadWholeBeforeAnErrorIsHeld) {
  using Kind = WeightPartId::Kind;
  const StageSpec spec = {0, 2, /*embeds=*/true, /*has_head=*/true};
  WeightParts held;
  const auto load = [&](const std::string& broken, Memory& memory) {
    return StageWeights::Load(
        source_->config(), spec, BrokenSource(*source_, broken),
        [](int64_t, int64_t) { return true; }, memory, StageWeights::Experts::kLoad, &held);
  };
  FakeCardMemory card(int64_t{1} << 30);
  EXPECT_EQ(load(kExpert, card).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(held.empty()) << "a card's go with it";
  EXPECT_EQ(load(kExpert, HostMemory()).status().code(), absl::StatusCode::kDataLoss);
  for (const WeightPartId& id : {WeightPartId{.kind = Kind::kEmbedding, .layer = 0},
                                 WeightPartId{.kind = Kind::kLayer, .layer = 0},
                                 WeightPartId{.kind = Kind::kLayer, .layer = 1}}) {
    EXPECT_TRUE(held.contains(id));
  }
  EXPECT_FALSE(held.contains({.kind = Kind::kExperts, .layer = 1}));
  // They are not read again.
  const auto weights = load("model.layers.0.input_layernorm.weight", HostMemory());
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_TRUE(IsWhole("model.embed_tokens.weight", (*weights)->embedding));
  EXPECT_TRUE(IsWhole("model.layers.1.mlp.gate.weight", (*weights)->layers[1].router));
  EXPECT_TRUE(IsWhole(kExpert, (*weights)->layers[1].experts[2].up));
  EXPECT_EQ(held.size(), 5u);
}

TEST_F(StageWeightsTest, ProgressGrowsToTheTotalOnTheCallersThread) {
  const std::thread::id caller = std::this_thread::get_id();
  int64_t last = 0, total = 0;
  const auto weights = Load(*source_, [&](int64_t loaded_bytes, int64_t total_bytes) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_GE(loaded_bytes, last);
    EXPECT_LE(loaded_bytes, total_bytes);
    last = loaded_bytes;
    total = total_bytes;
    return true;
  });
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, (*weights)->num_bytes());
}

TEST_F(StageWeightsTest, AnErrorNamesTheTensor) {
  for (const std::string& broken : {std::string(kExpert), std::string(kExpert) + "_scale_inv",
                                    std::string("model.layers.0.input_layernorm.weight")}) {
    const absl::Status status =
        Load(BrokenSource(*source_, broken), [](int64_t, int64_t) { return true; }).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(broken + ": the disk failed"));
  }
}

TEST_F(StageWeightsTest, IsStoppedByItsProgress) {
  const absl::Status status = Load(*source_, [](int64_t, int64_t) { return false; }).status();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

}  // namespace
}  // namespace caravan
