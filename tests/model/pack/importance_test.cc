#include "model/pack/importance.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/dequantize.h"
#include "kernels/tiled/tile_layout.h"
#include "model/checkpoint.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/tensor_table.h"
#include "nlohmann/json.hpp"
#include "tests/model/safetensors_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kTiny[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";
constexpr char kExpert[] = "model.layers.1.mlp.experts.3.up_proj.weight";
constexpr int64_t kCols = 256;  // of kExpert

std::vector<double> Values(const TensorSource& source, const std::string& name) {
  const TensorInfo& info = *source.Find(name);
  std::vector<std::byte> bytes(static_cast<size_t>(info.num_bytes()));
  EXPECT_TRUE(source.Read(name, absl::MakeSpan(bytes)).ok()) << name;
  std::vector<std::byte> rows(static_cast<size_t>(DTypeBytes(info.dtype, info.num_elements())));
  if (info.layout == MatrixLayout::kTiled16) {
    UntileMatrix(info.dtype, info.shape[0], info.shape[1], bytes.data(), rows.data());
  } else {
    rows = bytes;
  }
  std::vector<double> values(static_cast<size_t>(info.num_elements()));
  DequantizeRow(info.dtype, rows.data(), info.num_elements(), values.data());
  return values;
}

class ImportanceTest : public ::testing::Test {
 protected:
  ImportanceTest() : source_(*Checkpoint::Open(kTiny)) {}

  /// For every matrix that tiny-r1 has, columns that differ by orders of magnitude.
  Importance Random() const {
    Importance importance;
    std::mt19937_64 generator(5);
    std::normal_distribution<float> exponent(0, 2);
    StageSpec whole = {0, source_->config().num_hidden_layers, true, true, true};
    for (const TensorSpec& spec : StageTensors(source_->config(), whole)) {
      if (spec.tensor_class == TensorClass::kNorm) continue;
      Importance::Columns columns;
      for (int64_t col = 0; col < spec.shape[1]; ++col) {
        columns.mean_square.push_back(std::exp(exponent(generator)));
      }
      // An embedding is not multiplied.
      columns.count = spec.tensor_class == TensorClass::kEmbedding ? 0 : 1000;
      importance.Set(spec.name, columns);
    }
    return importance;
  }

  absl::StatusOr<std::unique_ptr<PackedModel>> PackWith(const std::string& name,
                                                        const Importance* importance) const {
    PackOptions options;
    options.output = dir_.File(name);
    options.types = {DType::kQ2_K, DType::kQ4_K};
    options.importance = importance;
    CARAVAN_RETURN_IF_ERROR(Pack(*source_, options));
    return PackedModel::Open(options.output);
  }

  const TempDir dir_;
  const std::unique_ptr<Checkpoint> source_;
};

TEST_F(ImportanceTest, SurvivesTheWayThroughAFile) {
  const std::string path = dir_.File("a.imatrix");
  Importance written;
  written.Set("b", {{0.5f, 2, 0}, 7});
  written.Set("a", {{0, 0}, 0});
  ASSERT_TRUE(written.Write(path).ok());
  const auto read = Importance::Read(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->path(), path);
  ASSERT_NE(read->Find("b"), nullptr);
  EXPECT_EQ(read->Find("b")->mean_square, (std::vector<float>{0.5f, 2, 0}));
  EXPECT_EQ(read->Find("b")->count, 7);
  EXPECT_EQ(read->Find("a")->count, 0);
  EXPECT_EQ(read->Find("c"), nullptr);
  EXPECT_EQ(read->fingerprint(), written.fingerprint());
  written.Set("a", {{0, 1}, 1});
  EXPECT_NE(read->fingerprint(), written.fingerprint());
}

TEST_F(ImportanceTest, LowersTheErrorThatItWeighs) {
  const Importance importance = Random();
  const auto plain = PackWith("plain", nullptr);
  ASSERT_TRUE(plain.ok()) << plain.status();
  const auto weighted = PackWith("weighted", &importance);
  ASSERT_TRUE(weighted.ok()) << weighted.status();
  // The exact values of the checkpoint.
  PackOptions options;
  options.output = dir_.File("exact");
  options.types = {DType::kF32, DType::kF32};
  ASSERT_TRUE(Pack(*source_, options).ok());
  const auto exact = PackedModel::Open(options.output);
  int matrices = 0;
  for (const std::string& name : (*weighted)->TensorNames()) {
    const TensorInfo& info = *(*weighted)->Find(name);
    if (BlockOf(info.dtype).values == 1 || absl::StrContains(name, "embed_tokens")) continue;
    ++matrices;
    const std::vector<double> right = Values(**exact, name);
    const std::vector<float>& weights = importance.Find(name)->mean_square;
    const auto error = [&](const PackedModel& model) {
      const std::vector<double> values = Values(model, name);
      double sum = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        sum += static_cast<double>(weights[i % weights.size()]) * std::pow(values[i] - right[i], 2);
      }
      return sum;
    };
    // Where a few columns weigh nearly all, much of the error goes to the others; of Q8_0 little
    // can go anywhere, as its codes are fine.
    const double most = info.dtype == DType::kQ8_0 ? 1 : 0.9;
    EXPECT_LT(error(**weighted), most * error(**plain)) << name;
  }
  EXPECT_GT(matrices, 500);
  const std::string embedding = "model.embed_tokens.weight";
  EXPECT_EQ(Values(**weighted, embedding), Values(**plain, embedding));
}

TEST_F(ImportanceTest, WhatNobodySawCountsEqually) {
  Importance importance = Random();
  Importance::Columns unseen = *importance.Find(kExpert);
  unseen.count = 0;
  importance.Set(kExpert, unseen);
  const auto plain = PackWith("plain", nullptr);
  const auto weighted = PackWith("weighted", &importance);
  ASSERT_TRUE(plain.ok() && weighted.ok()) << weighted.status();
  EXPECT_EQ(Values(**weighted, kExpert), Values(**plain, kExpert));
  const std::string other = "model.layers.1.mlp.experts.4.up_proj.weight";
  EXPECT_NE(Values(**weighted, other), Values(**plain, other));
}

TEST_F(ImportanceTest, WhatDoesNotFitTheModelIsNamed) {
  const std::string path = dir_.File("a.imatrix");
  const auto expect = [&](const Importance& importance, const std::string& says) {
    ASSERT_TRUE(importance.Write(path).ok());
    const auto read = Importance::Read(path);
    ASSERT_TRUE(read.ok()) << read.status();
    const absl::Status status = PackWith("refused", &*read).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path), HasSubstr(kExpert), HasSubstr(says)));
    // Before anything is written.
    EXPECT_FALSE(FileExists(dir_.File("refused")));
  };
  Importance narrow = Random();
  narrow.Set(kExpert, {std::vector<float>(kCols - 1, 1.0f), 3});
  expect(narrow, "has 255 columns, but the matrix 256");
  Importance partial;
  const Importance all = Random();
  StageSpec whole = {0, source_->config().num_hidden_layers, true, true, true};
  for (const TensorSpec& spec : StageTensors(source_->config(), whole)) {
    if (spec.name == kExpert || all.Find(spec.name) == nullptr) continue;
    partial.Set(spec.name, *all.Find(spec.name));
  }
  expect(partial, "is missing");
}

TEST_F(ImportanceTest, IsRefusedWhereItHasNoEffect) {
  const std::string path = dir_.File("a.imatrix");
  ASSERT_TRUE(Random().Write(path).ok());
  const auto importance = Importance::Read(path);
  ASSERT_TRUE(importance.ok()) << importance.status();
  PackOptions options;
  options.output = dir_.File("refused");
  options.importance = &*importance;
  for (const PackTypes& types : {PackTypes{}, PackTypes{DType::kF8E4M3, DType::kBF16}}) {
    options.types = types;
    const absl::Status status = Pack(*source_, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("no effect")));
  }
}

TEST_F(ImportanceTest, AnUnfinishedPackGoesOnWithTheSameImportanceOnly) {
  const Importance importance = Random();
  PackOptions options;
  options.output = dir_.File("broken");
  options.types = {DType::kQ8_0, DType::kQ8_0};
  options.importance = &importance;
  options.progress = [](int64_t done, int64_t) { return done < 4 << 20; };
  ASSERT_TRUE(absl::IsCancelled(Pack(*source_, options)));
  options.progress = nullptr;
  options.importance = nullptr;
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kFailedPrecondition);
  options.importance = &importance;
  EXPECT_TRUE(Pack(*source_, options).ok());
}

TEST_F(ImportanceTest, BadFilesAreNamed) {
  const auto expect = [&](const std::string& bytes, const std::string& says) {
    const std::string path = dir_.Write("bad.imatrix", bytes);
    const absl::Status status = Importance::Read(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(says)));
  };
  const auto file = [](const std::string& dtype, const json& shape, float value,
                       const std::string& counts) {
    json header = {{"x", TensorHeader(dtype, shape, 0, 8)}};
    if (!counts.empty()) header["__metadata__"] = {{"caravan.imatrix.counts", counts}};
    std::string data(8, '\0');
    std::memcpy(data.data(), &value, sizeof(value));
    return SafetensorsBytes(header.dump(), data);
  };
  ASSERT_TRUE(Importance::Read(dir_.Write("good", file("F32", {2}, 1, R"({"x": 3})"))).ok());
  expect("GGUF", "truncated");
  expect(file("F32", {2}, 1, ""), "__metadata__ has no caravan.imatrix.counts");
  expect(file("F32", {2}, 1, "{"), "caravan.imatrix.counts");
  expect(file("F32", {2}, 1, "{}"), "x");
  expect(file("F32", {2}, 1, R"({"x": -1})"), "x");
  expect(file("F32", {1, 2}, 1, R"({"x": 3})"), "tensor x: is no vector of F32");
  expect(file("BF16", {4}, 1, R"({"x": 3})"), "tensor x: is no vector of F32");
  expect(file("F32", {2}, -1, R"({"x": 3})"), "tensor x: has a value that is no mean square");
  expect(file("F32", {2}, NAN, R"({"x": 3})"), "tensor x: has a value that is no mean square");
  EXPECT_EQ(Importance::Read(dir_.File("nowhere")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace caravan
