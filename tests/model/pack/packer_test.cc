#include "model/pack/packer.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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
#include "model/text_model.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/model/safetensors_writer.h"
#include "tests/model/tokenizer_files.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kTiny[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";

std::vector<std::byte> ReadAll(const TensorSource& source, const std::string& name) {
  std::vector<std::byte> bytes(static_cast<size_t>(source.Find(name)->num_bytes()));
  EXPECT_TRUE(source.Read(name, absl::MakeSpan(bytes)).ok()) << name;
  return bytes;
}

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

/// The packed tensor's rows, out of their tiles.
std::vector<std::byte> RowMajor(const TensorSource& source, const std::string& name) {
  const TensorInfo& info = *source.Find(name);
  std::vector<std::byte> bytes = ReadAll(source, name);
  if (info.layout == MatrixLayout::kRowMajor) return bytes;
  std::vector<std::byte> rows(static_cast<size_t>(DTypeBytes(info.dtype, info.num_elements())));
  UntileMatrix(info.dtype, info.shape[0], info.shape[1], bytes.data(), rows.data());
  return rows;
}

class PackerTest : public ::testing::Test {
 protected:
  PackerTest() : source_(*Checkpoint::Open(kTiny)) {}

  PackOptions Options(const std::string& name, const PackTypes& types) const {
    PackOptions options;
    options.output = dir_.File(name);
    options.types = types;
    options.num_threads = 2;
    return options;
  }
  std::unique_ptr<PackedModel> MustPack(const PackOptions& options) const {
    const absl::Status packed = Pack(*source_, options);
    EXPECT_TRUE(packed.ok()) << packed;
    auto model = PackedModel::Open(options.output);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  /// The source as a GGUF file with its tokenizer, of the kind `pre`; the path.
  std::string WriteGguf(absl::string_view pre) const {
    const json config = json::parse(source_->config_json());
    GgufWriter writer;
    AddGgufConfig(config, GgufAge::kNew, /*with_mtp=*/true, writer);
    AddGgufTokenizer(TinyTokenizerJson(), config["vocab_size"], pre, writer);
    const std::string chat_path = JoinPath(kTiny, "tokenizer_config.json");
    writer.SetString("tokenizer.chat_template",
                     (*ReadJsonFile(chat_path))["chat_template"].get<std::string>());
    writer.Set("tokenizer.ggml.add_bos_token", true);
    const RawTensors tensors = SplitKvB(
        DequantizedTensors(*source_, source_->config(), /*with_mtp=*/true), source_->config());
    for (const auto& [name, tensor] : GgufTensors(tensors, source_->config().num_attention_heads)) {
      AddGgufTensor(name, tensor, writer);
    }
    return dir_.Write("model.gguf", writer.Bytes());
  }

  const TempDir dir_;
  const std::unique_ptr<Checkpoint> source_;
};

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

TEST_F(PackerTest, WhatIsInterruptedIsNoPackAndGoesOn) {
  const auto whole = MustPack(Options("whole", {DType::kQ8_0, DType::kQ8_0}));
  PackOptions options = Options("broken", {DType::kQ8_0, DType::kQ8_0});
  int64_t last_start = -1;
  int interruptions = 0;
  while (true) {
    // Each time a little further, in the midst of a file.
    int64_t first = -1;
    options.progress = [&](int64_t done, int64_t /*total*/) {
      if (first < 0) first = done;
      return done < first + (int64_t{4} << 20);
    };
    const absl::Status status = Pack(*source_, options);
    if (status.ok()) break;
    ASSERT_TRUE(absl::IsCancelled(status)) << status;
    ASSERT_GE(first, last_start);
    last_start = first;
    ASSERT_LT(++interruptions, 100);
    const absl::Status opened = OpenStoredModel(options.output).status();
    EXPECT_EQ(opened.code(), absl::StatusCode::kFailedPrecondition) << opened;
    EXPECT_THAT(std::string(opened.message()), HasSubstr("not finished"));
    for (const auto& entry : std::filesystem::directory_iterator(options.output)) {
      EXPECT_NE(entry.path().extension(), ".partial") << entry.path();
    }
  }
  EXPECT_GT(interruptions, 2);
  const auto packed = PackedModel::Open(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(PackManifestToJson((*packed)->manifest()), PackManifestToJson(whole->manifest()));
  EXPECT_TRUE((*packed)->CheckHashes([](int64_t, int64_t) { return true; }).ok());
}

TEST_F(PackerTest, AnUnfinishedPackOfOtherOptionsIsNotGoneOnWith) {
  PackOptions options = Options("broken", {DType::kQ8_0, DType::kQ8_0});
  options.progress = [](int64_t done, int64_t) { return done < 4 << 20; };
  ASSERT_TRUE(absl::IsCancelled(Pack(*source_, options)));
  options.types.experts = DType::kQ4_K;
  options.types.dense = DType::kBF16;
  options.progress = nullptr;
  const absl::Status status = Pack(*source_, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(options.output));
}

TEST_F(PackerTest, AnUnfinishedPackOfAnotherSourceIsNotGoneOnWith) {
  const PackTypes types = {DType::kQ8_0, DType::kQ8_0};
  PackOptions options = Options("broken", types);
  options.progress = [](int64_t done, int64_t) { return done < 4 << 20; };
  ASSERT_TRUE(absl::IsCancelled(Pack(*source_, options)));
  options.progress = nullptr;
  // The same shapes and the same fingerprint, but it may hold other weights.
  const std::string other = dir_.File("other");
  std::filesystem::copy(kTiny, other, std::filesystem::copy_options::recursive);
  const absl::Status moved = Pack(**Checkpoint::Open(other), options);
  EXPECT_EQ(moved.code(), absl::StatusCode::kFailedPrecondition) << moved;
  EXPECT_THAT(std::string(moved.message()),
              AllOf(HasSubstr(options.output), HasSubstr(kTiny), HasSubstr(other)));
  // The same path, but another model by now: what was begun there is not taken for it.
  const std::string path = JoinPath(options.output, kUnfinishedPackName);
  json unfinished = *ReadJsonFile(path);
  unfinished["origin"]["fingerprint"] = "0123456789abcdef";
  std::ofstream(path) << unfinished.dump();
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kFailedPrecondition);
  unfinished.erase("origin");
  std::ofstream(path) << unfinished.dump();
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PackerTest, AFinishedPackDoesNotSayWhereItWasMade) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  EXPECT_FALSE(packed->manifest().origin.has_value());
  const json manifest = *ReadJsonFile(JoinPath(packed->path(), kPackManifestName));
  EXPECT_FALSE(manifest.contains("origin"));
}

TEST_F(PackerTest, TwoDoNotPackIntoOneDirectory) {
  PackOptions options = Options("both", {});
  absl::Status second;
  options.progress = [&](int64_t, int64_t) {
    if (second.ok()) second = Pack(*source_, Options("both", {}));
    return true;
  };
  ASSERT_TRUE(Pack(*source_, options).ok());
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition) << second;
  EXPECT_THAT(std::string(second.message()), HasSubstr("another process is packing into it"));
}

TEST_F(PackerTest, WhatAKilledProcessLeftGoes) {
  const std::string output = dir_.File("q");
  std::filesystem::create_directory(output);
  // Of a file that would come late, and of one that is none of ours.
  std::ofstream(output + "/mtp.bin.partial") << "x";
  std::ofstream(output + "/notes.partial") << "x";
  PackOptions options = Options("q", {});
  options.progress = [](int64_t, int64_t) { return false; };
  EXPECT_TRUE(absl::IsCancelled(Pack(*source_, options)));
  EXPECT_FALSE(FileExists(output + "/mtp.bin.partial"));
  EXPECT_TRUE(FileExists(output + "/notes.partial"));
}

TEST_F(PackerTest, APackIsNotPackedOver) {
  const PackOptions options = Options("q", {DType::kQ8_0, DType::kQ8_0});
  const auto packed = MustPack(options);
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kFailedPrecondition);
  PackOptions again = Options("again", {});
  const absl::Status repacked = Pack(*packed, again);
  EXPECT_EQ(repacked.code(), absl::StatusCode::kInvalidArgument) << repacked;
  EXPECT_THAT(std::string(repacked.message()), HasSubstr("packed already"));
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

TEST_F(PackerTest, ASourceIsNotPackedIntoItself) {
  const std::string copy = dir_.File("copy");
  std::filesystem::copy(kTiny, copy, std::filesystem::copy_options::recursive);
  const auto source = OpenStoredModel(copy);
  ASSERT_TRUE(source.ok()) << source.status();
  PackOptions options = Options("x", {});
  options.output = copy + "/../copy";
  options.progress = [](int64_t, int64_t) { return false; };
  const absl::Status status = Pack(**source, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(options.output));
  EXPECT_TRUE(OpenStoredModel(copy).ok());
}

TEST_F(PackerTest, AWeightThatIsNoNumberIsNamedWithItsModel) {
  const std::string copy = dir_.File("copy");
  std::filesystem::copy(kTiny, copy, std::filesystem::copy_options::recursive);
  const std::string name = "model.embed_tokens.weight";
  ASSERT_EQ(source_->Find(name)->dtype, DType::kBF16);
  const json index = *ReadJsonFile(copy + "/model.safetensors.index.json");
  const std::string shard = JoinPath(copy, index["weight_map"][name].get<std::string>());
  const int64_t offset = (*SafetensorsFile::Open(shard))->Offset(name);
  {
    std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset);
    file.write("\xff\x7f", 2);
  }
  const absl::Status status =
      Pack(**OpenStoredModel(copy), Options("x", {DType::kQ8_0, DType::kQ8_0}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat(copy, ": tensor ", name, ": row 0: value 0 is nan")));
}

TEST_F(PackerTest, AMissingTensorIsNamedWithItsModel) {
  const std::string copy = dir_.File("copy");
  std::filesystem::copy(kTiny, copy, std::filesystem::copy_options::recursive);
  const std::string name = "model.layers.3.mlp.experts.7.up_proj.weight";
  json index = *ReadJsonFile(copy + "/model.safetensors.index.json");
  ASSERT_EQ(index["weight_map"].erase(name), 1u);
  std::ofstream(copy + "/model.safetensors.index.json") << index.dump();
  const auto source = OpenStoredModel(copy);
  ASSERT_TRUE(source.ok()) << source.status();
  const std::string says = absl::StrCat(copy, ": tensor ", name, ": is missing");
  EXPECT_THAT(std::string(Pack(**source, Options("x", {})).message()), HasSubstr(says));
  EXPECT_THAT(std::string(CostOfStoredModel(**source).status().message()), HasSubstr(says));
}

TEST_F(PackerTest, TextFilesAreCoveredWhereTheManifestHasTheirHashes) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  const auto check = [&] {
    const auto opened = PackedModel::Open(packed->path());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return (*opened)->CheckHashes([](int64_t, int64_t) { return true; });
  };
  EXPECT_TRUE(check().ok());
  for (const std::string& path :
       {packed->path() + "/config.json", packed->path() + "/tokenizer.json"}) {
    const std::string before = *ReadFile(path, 1 << 24);
    std::ofstream(path) << before << " ";
    const absl::Status changed = check();
    EXPECT_EQ(changed.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(changed.message()), HasSubstr(path + ": hash"));
    std::ofstream(path) << before;
    EXPECT_TRUE(check().ok());
  }
  const std::string path = packed->path() + "/tokenizer.json";
  std::filesystem::remove(path);
  const absl::Status gone = check();
  EXPECT_EQ(gone.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(gone.message()), HasSubstr(path + ": is missing"));
  // As packs were made before.
  json manifest = *ReadJsonFile(JoinPath(packed->path(), kPackManifestName));
  ASSERT_EQ(manifest.erase("texts"), 1u);
  std::ofstream(JoinPath(packed->path(), kPackManifestName)) << manifest.dump();
  EXPECT_TRUE(check().ok());
}

TEST_F(PackerTest, MessagesCallItWhatItIs) {
  PackOptions options = Options("made", {});
  options.doing = "making";
  options.progress = [](int64_t, int64_t) { return false; };
  EXPECT_THAT(std::string(Pack(*source_, options).message()), HasSubstr("making was stopped"));
}

TEST_F(PackerTest, ADamagedPackIsFound) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  const std::string path = JoinPath(packed->path(), "layer-002.bin");
  const auto flip = [&](int64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(offset);
    file.put(byte);
  };
  const auto expect_damaged = [&](const std::string& says) {
    const absl::Status damaged = packed->CheckHashes([](int64_t, int64_t) { return true; });
    EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(damaged.message()), HasSubstr(path + says));
  };
  flip(5000);
  expect_damaged(": hash");
  const PackedExperts& experts = packed->FindExperts(2)->experts;
  flip(experts.offset + 7 * experts.stride + 5);
  expect_damaged(", expert 7: hash");
  std::filesystem::resize_file(path, 5000);
  const absl::Status truncated = PackedModel::Open(packed->path()).status();
  EXPECT_EQ(truncated.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(truncated.message()), HasSubstr(path));
  std::filesystem::remove(path);
  EXPECT_EQ(PackedModel::Open(packed->path()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PackerTest, ADirectoryThatCannotBeMadeIsNamed) {
  PackOptions options = Options("x", {});
  options.output = "/dev/null/pack";
  const absl::Status status = Pack(*source_, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/null/pack"));
  options.output = "";
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PackerTest, AGgufWithATokenizerThatCaravanLacksIsPackedWithoutIt) {
  const auto gguf = OpenStoredModel(WriteGguf("qwen2"));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const PackOptions options = Options("gguf", {});
  const absl::Status status = Pack(**gguf, options);
  ASSERT_TRUE(status.ok()) << status;
  const auto packed = OpenStoredModel(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->TensorNames(), (*gguf)->TensorNames());
  EXPECT_TRUE(absl::IsNotFound((*packed)->ReadText("tokenizer.json").status()));
}

TEST_F(PackerTest, PacksAGgufWithItsTokenizerAndLosesNothing) {
  const std::string path = WriteGguf("deepseek-v3");
  const absl::StatusOr<std::unique_ptr<StoredModel>> gguf = OpenStoredModel(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const PackOptions options = Options("gguf", {});
  ASSERT_TRUE(Pack(**gguf, options).ok());
  const absl::StatusOr<std::unique_ptr<StoredModel>> packed = OpenStoredModel(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->TensorNames(), (*gguf)->TensorNames());
  EXPECT_NE((*packed)->fingerprint(), (*gguf)->fingerprint());
  for (const std::string& name : (*packed)->TensorNames()) {
    EXPECT_EQ((*packed)->Find(name)->dtype, (*gguf)->Find(name)->dtype) << name;
    EXPECT_TRUE(RowMajor(**packed, name) == ReadAll(**gguf, name)) << name;
  }
  // And what is said to the model is the same, from either.
  const std::vector<ChatTurn> turns = {{"system", "Be brief."}, {"user", "What is 487 + 358?"}};
  const auto original = TextModel::Load(kTiny, source_->config());
  ASSERT_TRUE(original.ok()) << original.status();
  for (const StoredModel* model : {gguf->get(), packed->get()}) {
    const auto text = TextModel::Load(model->path(), model->config());
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*(*text)->chat().Encode(turns), *(*original)->chat().Encode(turns));
    EXPECT_EQ((*text)->stop_token_ids(), (*original)->stop_token_ids());
  }
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
