#include "model/pack/packer.h"

#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/dequantize.h"
#include "kernels/quant/fp8_blocks.h"
#include "kernels/quant/quantize.h"
#include "kernels/tiled/tile_layout.h"
#include "model/checkpoint.h"
#include "model/pack/file_hash.h"
#include "model/pack/matrix_packer.h"
#include "model/pack/packed_model.h"
#include "model/safetensors.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"
#include "model/tensor_table.h"
#include "tests/model/pack/packer_testing.h"
#include "tests/model/safetensors_writer.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

/// The checkpoint's exact values, row-major.
std::vector<float> Values(const TensorSource& source, const std::string& name) {
  const TensorInfo& info = *source.Find(name);
  const int64_t cols = info.shape.back();
  const int64_t rows = info.num_elements() / cols;
  const std::vector<std::byte> bytes = ReadAll(source, name);
  std::vector<float> values(static_cast<size_t>(info.num_elements()));
  for (int64_t row = 0; row < rows; ++row) {
    DequantizeRow(info.dtype, bytes.data() + row * DTypeBytes(info.dtype, cols), cols,
                  values.data() + row * cols);
  }
  if (source.Find(ScaleName(name)) == nullptr) return values;
  const std::vector<std::byte> scale_bytes = ReadAll(source, ScaleName(name));
  std::vector<float> scales(scale_bytes.size() / sizeof(float));
  std::memcpy(scales.data(), scale_bytes.data(), scale_bytes.size());
  for (int64_t i = 0; i < rows * cols; ++i) {
    values[i] *= scales[i / cols / kFp8BlockSize * Fp8Blocks(cols) + i % cols / kFp8BlockSize];
  }
  return values;
}

TEST_F(PackerTest, KeptFormatsLoseNothing) {
  const auto packed = MustPack(Options("kept", {}));
  // All but the copies of the embedding and the head in the layer of multi-token prediction.
  EXPECT_EQ(packed->TensorNames().size(), source_->TensorNames().size() - 2);
  for (const std::string& name : packed->TensorNames()) {
    const TensorInfo& before = *source_->Find(name);
    const TensorInfo& after = *packed->Find(name);
    EXPECT_EQ(after.shape, before.shape) << name;
    if (after.dtype == before.dtype) {
      EXPECT_TRUE(RowMajor(*packed, name) == ReadAll(*source_, name)) << name;
    } else {
      EXPECT_EQ(after.dtype, DType::kF32) << name;  // a norm
      EXPECT_EQ(after.shape.size(), 1u) << name;
      EXPECT_TRUE(Values(*packed, name) == Values(*source_, name)) << name;
    }
  }
}

TEST_F(PackerTest, QuantizesTheExactValuesOfTheCheckpoint) {
  const auto packed = MustPack(Options("q", {DType::kQ4_K, DType::kQ8_0}));
  int quantized = 0;
  for (const std::string& name : packed->TensorNames()) {
    const TensorInfo& info = *packed->Find(name);
    if (BlockOf(info.dtype).values == 1) continue;
    ++quantized;
    const std::vector<float> values = Values(*source_, name);
    const std::vector<std::byte> rows = RowMajor(*packed, name);
    const int64_t cols = info.shape[1];
    const int64_t row_bytes = DTypeBytes(info.dtype, cols);
    std::vector<std::byte> expected(static_cast<size_t>(row_bytes));
    for (int64_t row : {int64_t{0}, info.shape[0] / 2, info.shape[0] - 1}) {
      ASSERT_TRUE(
          QuantizeRow(info.dtype, values.data() + row * cols, cols, nullptr, expected.data()).ok());
      EXPECT_EQ(std::memcmp(expected.data(), rows.data() + row * row_bytes, expected.size()), 0)
          << name << " row " << row;
    }
  }
  EXPECT_GT(quantized, 600);
  const std::string expert = "model.layers.3.mlp.experts.7.";
  EXPECT_EQ(packed->Find(expert + "gate_proj.weight")->dtype, DType::kQ4_K);
  EXPECT_EQ(packed->Find(expert + "gate_proj.weight")->layout, MatrixLayout::kTiled16);
  // 128 columns are no whole block of Q4_K.
  EXPECT_EQ(packed->Find(expert + "down_proj.weight")->dtype, DType::kQ8_0);
  EXPECT_EQ(packed->Find("model.layers.3.self_attn.kv_b_proj.weight")->layout,
            MatrixLayout::kRowMajor);
  EXPECT_EQ(packed->Find("model.layers.3.mlp.gate.weight")->dtype,
            source_->Find("model.layers.3.mlp.gate.weight")->dtype);
  EXPECT_EQ(packed->Find(expert + "down_proj.weight_scale_inv"), nullptr);
}

TEST_F(PackerTest, BecomesFp8InTheBlocksOfTheCheckpoints) {
  // Wide enough for pieces of the source to be less than the matrix.
  constexpr int64_t kRows = 300;
  constexpr int64_t kCols = 12 * 1024;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kRows * kCols);
  for (float& value : values) value = normal(random);
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  const json header = {
      {"m", TensorHeader("F32", {kRows, kCols}, 0, static_cast<int64_t>(bytes.size()))}};
  const auto source =
      SafetensorsFile::Open(dir_.Write("m.safetensors", SafetensorsBytes(header.dump(), bytes)));
  ASSERT_TRUE(source.ok()) << source.status();

  std::vector<std::byte> codes(values.size());
  std::vector<float> scales(static_cast<size_t>(Fp8Blocks(kRows) * Fp8Blocks(kCols)));
  ASSERT_TRUE(QuantizeFp8Blocks(values.data(), kRows, kCols, codes.data(), scales.data()).ok());
  ThreadPool pool(2);
  MatrixPacker packer(source->get(), nullptr, &pool);
  for (const MatrixLayout layout : {MatrixLayout::kRowMajor, MatrixLayout::kTiled16}) {
    const TensorInfo info = {DType::kF8E4M3, {kRows, kCols}, layout};
    std::vector<std::byte> packed;
    const auto collect = [&](absl::Span<const std::byte> piece) {
      packed.insert(packed.end(), piece.begin(), piece.end());
      return absl::OkStatus();
    };
    ASSERT_TRUE(packer.Pack("m", info, collect).ok());
    ASSERT_EQ(packed.size(), static_cast<size_t>(info.num_bytes()));
    std::vector<std::byte> rows(codes.size());
    if (layout == MatrixLayout::kTiled16) {
      UntileMatrix(info.dtype, kRows, kCols, packed.data(), rows.data());
    } else {
      rows = packed;
    }
    EXPECT_TRUE(rows == codes);
    packed.clear();
    const TensorSpec spec = {"m", {kRows, kCols}, TensorClass::kDenseFfn};
    ASSERT_TRUE(packer.Pack(ScaleName("m"), ScaleInfo(spec), collect).ok());
    ASSERT_EQ(packed.size(), scales.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(packed.data(), scales.data(), packed.size()), 0);
  }
}

TEST_F(PackerTest, AModelInFp8Opens) {
  const auto packed = MustPack(Options("fp8", {DType::kF8E4M3, DType::kF8E4M3}));
  for (const std::string& name : packed->TensorNames()) {
    const TensorInfo& before = *source_->Find(absl::StripSuffix(name, ScaleName("")));
    const TensorInfo& after = *packed->Find(name);
    if (before.shape.size() == 1) continue;
    const bool is_router = absl::EndsWith(name, ".mlp.gate.weight");
    const bool is_scale = absl::EndsWith(name, ScaleName(""));
    EXPECT_EQ(after.dtype, is_router  ? before.dtype
                           : is_scale ? DType::kF32
                                      : DType::kF8E4M3)
        << name;
    if (before.dtype == DType::kF8E4M3 && !is_scale) {
      EXPECT_TRUE(RowMajor(*packed, name) == ReadAll(*source_, name)) << name;
    }
  }
  EXPECT_TRUE(CheckTensors(*packed, EmbeddingTensors(packed->config())).ok());
  EXPECT_TRUE(CheckTensors(*packed, HeadTensors(packed->config())).ok());
}

TEST_F(PackerTest, ExpertsLieWhereDirectReadsCanTakeThem) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  int layers = 0;
  for (const PackedFile& file : packed->manifest().files) {
    if (!file.experts.has_value()) continue;
    ++layers;
    EXPECT_EQ(file.experts->offset % kExpertAlignment, 0);
    EXPECT_EQ(file.experts->stride % kExpertAlignment, 0);
    EXPECT_EQ(file.experts->count, 32);
    EXPECT_EQ(file.experts->tensors.size(), 3u);
  }
  EXPECT_EQ(layers, 6);
  EXPECT_EQ(source_->FindExperts(3), nullptr);
}

TEST_F(PackerTest, TheFirstLayerMayHaveExperts) {
  json config = json::parse(std::ifstream(std::string(kTiny) + "/config.json"));
  config["first_k_dense_replace"] = 0;
  SyntheticModel::Options shape;
  shape.config_path = dir_.Write("config.json", config.dump());
  shape.num_layers = 1;
  shape.types = {DType::kQ8_0, DType::kQ8_0};
  const auto source = SyntheticModel::Create(shape);
  ASSERT_TRUE(source.ok()) << source.status();
  const PackOptions options = Options("q", shape.types);
  ASSERT_TRUE(Pack(**source, options).ok());
  const auto packed = PackedModel::Open(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  const ExpertFile* const layer = (*packed)->FindExperts(0);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->experts.prefix, "model.layers.0.mlp.experts.");
  EXPECT_EQ(layer->experts.count, 32);
}

TEST_F(PackerTest, EachExpertsRunHasItsHash) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  EXPECT_EQ(packed->FindExperts(0), nullptr);  // a dense layer
  EXPECT_EQ(packed->FindExperts(1000), nullptr);
  const ExpertFile* const layer = packed->FindExperts(2);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->path, JoinPath(packed->path(), "layer-002.bin"));
  const auto file = ReadableFile::Open(layer->path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(layer->experts.hashes.size(), 32u);
  std::vector<std::byte> run(static_cast<size_t>(layer->experts.stride));
  for (const int64_t e : {0, 1, 31}) {
    const int64_t offset = layer->experts.offset + e * layer->experts.stride;
    ASSERT_TRUE((*file)->Read(offset, absl::MakeSpan(run)).ok());
    EXPECT_EQ(HashOf(run), layer->experts.hashes[static_cast<size_t>(e)]);
  }
}

TEST_F(PackerTest, TheSameBytesWhateverTheThreads) {
  PackOptions one = Options("one", {DType::kQ4_K, DType::kQ8_0});
  one.num_threads = 1;
  PackOptions three = one;
  three.output = dir_.File("three");
  three.num_threads = 3;
  EXPECT_EQ(PackManifestToJson(MustPack(one)->manifest()),
            PackManifestToJson(MustPack(three)->manifest()));
}

TEST_F(PackerTest, SomeLayersAlone) {
  PackOptions options = Options("some", {DType::kQ8_0, DType::kQ8_0});
  options.layers = {2, 4};
  const auto packed = MustPack(options);
  ASSERT_EQ(packed->manifest().files.size(), 2u);
  EXPECT_NE(packed->Find("model.layers.3.input_layernorm.weight"), nullptr);
  EXPECT_EQ(packed->Find("model.layers.4.input_layernorm.weight"), nullptr);
  EXPECT_EQ(packed->Find("model.embed_tokens.weight"), nullptr);
  options.output = dir_.File("outside");
  options.layers = {4, 7};
  const absl::Status outside = Pack(*source_, options);
  EXPECT_EQ(outside.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outside.message()), HasSubstr("--layers 4-6: the model has layers 0-5"));
  EXPECT_TRUE(packed->is_partial());
  EXPECT_FALSE(source_->is_partial());
  const absl::Status no_model = CostOfStoredModel(*packed).status();
  EXPECT_EQ(no_model.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(no_model.message()),
              HasSubstr(packed->path() + ": is a pack of some layers alone"));
}

TEST(PackTypesTest, NamesOfFormatsAndPresets) {
  EXPECT_EQ(**ParsePackType("q4_K"), DType::kQ4_K);
  EXPECT_EQ(**ParsePackType("Q8_0"), DType::kQ8_0);
  EXPECT_EQ(**ParsePackType("bf16"), DType::kBF16);
  EXPECT_EQ(**ParsePackType("fp8"), DType::kF8E4M3);
  EXPECT_EQ(*ParsePackType("keep"), std::nullopt);
  for (const char* name : {"", "q9", "i32", "f8_e4m3", "4bit"}) {
    EXPECT_EQ(ParsePackType(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(PackPreset("4bit")->experts, DType::kQ4_K);
  EXPECT_FALSE(PackPreset("5bit").ok());
}

TEST(PackTypesTest, KvBKeepsEightBits) {
  const TensorSpec kv_b = {
      "model.layers.0.self_attn.kv_b_proj.weight", {64, 512}, TensorClass::kAttention};
  const TensorInfo source = {DType::kBF16, {64, 512}, MatrixLayout::kRowMajor};
  EXPECT_EQ(PackedInfo({DType::kQ4_K, DType::kQ4_K}, kv_b, source).dtype, DType::kQ8_0);
  EXPECT_EQ(PackedInfo({DType::kQ4_K, DType::kBF16}, kv_b, source).dtype, DType::kBF16);
  const TensorSpec odd = {"model.layers.0.mlp.up_proj.weight", {64, 33}, TensorClass::kDenseFfn};
  EXPECT_EQ(PackedInfo({DType::kQ4_K, DType::kQ4_K}, odd, {DType::kF32, {64, 33}, {}}).dtype,
            DType::kBF16);
}

}  // namespace
}  // namespace caravan
