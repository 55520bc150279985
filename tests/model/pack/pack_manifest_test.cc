#include "model/pack/pack_manifest.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kHash[] = "0123456789abcdef0123456789abcdef";

/// A file with a norm, a matrix and three experts of two matrices.
PackManifest SmallManifest() {
  PackedFile file;
  file.name = "layer-001.bin";
  file.hash = kHash;
  file.tensors = {{"a.norm", {DType::kF32, {24}, MatrixLayout::kRowMajor}, 0},
                  {"a.weight", {DType::kQ8_0, {20, 64}, MatrixLayout::kTiled16}, 128}};
  PackedExperts experts;
  experts.prefix = "a.experts.";
  experts.count = 3;
  experts.offset = 4096;
  experts.stride = 8192;
  experts.tensors = {{"up", {DType::kQ4_K, {16, 256}, MatrixLayout::kTiled16}, 0},
                     {"down", {DType::kBF16, {16, 16}, MatrixLayout::kTiled16}, 2304}};
  experts.hashes.assign(3, kHash);
  file.experts = experts;
  file.bytes = 4096 + 3 * 8192;
  return {{file}};
}

json SmallJson() { return json::parse(PackManifestToJson(SmallManifest())); }

void ExpectRefused(const json& manifest, const std::string& says) {
  const absl::Status status = ParsePackManifest(manifest.dump(), "the origin").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << says;
  EXPECT_THAT(std::string(status.message()), AllOf(StartsWith("the origin"), HasSubstr(says)));
}

TEST(PackManifestTest, SurvivesTheWayThroughJson) {
  const std::string text = PackManifestToJson(SmallManifest());
  const absl::StatusOr<PackManifest> parsed = ParsePackManifest(text, "origin");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(PackManifestToJson(*parsed), text);
  const PackedFile& file = parsed->files.at(0);
  EXPECT_EQ(file.tensors.at(1).info.dtype, DType::kQ8_0);
  EXPECT_EQ(file.tensors.at(1).info.layout, MatrixLayout::kTiled16);
  // Two tiles of 16 rows, each of two blocks of 34 bytes a row.
  EXPECT_EQ(file.tensors.at(1).info.num_bytes(), 2 * 16 * 2 * 34);
}

TEST(PackManifestTest, HasHashesOfTextFilesOrNone) {
  EXPECT_FALSE(SmallJson().contains("texts"));
  PackManifest manifest = SmallManifest();
  manifest.texts = {{"config.json", kHash}, {"tokenizer.json", kHash}};
  const std::string text = PackManifestToJson(manifest);
  const absl::StatusOr<PackManifest> parsed = ParsePackManifest(text, "origin");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->texts.size(), 2u);
  EXPECT_EQ(parsed->texts[1].name, "tokenizer.json");
  EXPECT_EQ(PackManifestToJson(*parsed), text);
  json wrong = json::parse(text);
  wrong["texts"][1]["name"] = "../x";
  ExpectRefused(wrong, "field \"name\"");
  wrong = json::parse(text);
  wrong["texts"][0]["xxh3"] = "0123";
  ExpectRefused(wrong, "field \"xxh3\"");
  wrong["texts"] = 7;
  ExpectRefused(wrong, "field \"texts\"");
}

TEST(PackManifestTest, NamesEveryExpertsTensorsAndPlaces) {
  const PackManifest manifest = SmallManifest();
  const std::vector<PackedTensor> all = AllTensors(manifest.files[0]);
  ASSERT_EQ(all.size(), 2u + 3 * 2);
  EXPECT_EQ(all[2].name, "a.experts.0.up");
  EXPECT_EQ(all[2].offset, 4096);
  EXPECT_EQ(all[7].name, "a.experts.2.down");
  EXPECT_EQ(all[7].offset, 4096 + 2 * 8192 + 2304);
}

TEST(PackManifestTest, RefusesWhatIsNoManifest) {
  json manifest = SmallJson();
  manifest["format"] = "other";
  ExpectRefused(manifest, "format");
  manifest = SmallJson();
  manifest["version"] = 1;
  ExpectRefused(manifest,
                "\"version\" is 1; this Caravan reads version 2, so pack the model again");
  manifest["version"] = 3;
  ExpectRefused(manifest,
                "\"version\" is 3; this Caravan reads version 2, so a newer Caravan is needed");
  manifest = SmallJson();
  manifest.erase("files");
  ExpectRefused(manifest, "files");
  ExpectRefused(json::array(), "");
}

TEST(PackManifestTest, RefusesFilesOutsideItsDirectory) {
  for (const char* name : {"", "../x", "/etc/passwd", ".hidden", "a/b"}) {
    json manifest = SmallJson();
    manifest["files"][0]["name"] = name;
    ExpectRefused(manifest, "name");
  }
}

TEST(PackManifestTest, RefusesTensorsThatCannotBe) {
  const auto expect = [](const char* field, const json& value, const std::string& says) {
    json manifest = SmallJson();
    manifest["files"][0]["tensors"][1][field] = value;
    ExpectRefused(manifest, says);
  };
  expect("dtype", "Q9", "a.weight: field \"dtype\"");
  expect("layout", "tiled15", "a.weight: field \"layout\"");
  expect("shape", json::array({20, 63}), "a.weight: field \"shape\"");  // no whole blocks
  expect("shape", json::array({20, 0}), "a.weight: field \"shape\"");
  expect("shape", json::array({1, 1 << 25}), "a.weight: field \"shape\"");
  expect("shape", json::array({64}), "a.weight: field \"shape\"");  // tiles need rows
  expect("shape", json::array({2, 2, 32}), "a.weight: field \"shape\"");
  expect("shape", json::array({1 << 20, 64}), "a.weight of layer-001.bin: runs past the end");
  expect("offset", 100, "a.weight of layer-001.bin: its offset");
  expect("offset", 64, "a.weight of layer-001.bin: lies over another");
  expect("offset", -64, "a.weight: field \"offset\"");
  expect("offset", 1 << 20, "a.weight of layer-001.bin: runs past the end");
}

TEST(PackManifestTest, RefusesExpertsThatCannotBe) {
  const auto expect = [](const char* field, int64_t value, const std::string& says) {
    json manifest = SmallJson();
    manifest["files"][0]["experts"][field] = value;
    ExpectRefused(manifest, says);
  };
  expect("count", 0, "count");
  expect("count", 4, "count");
  expect("count", int64_t{1} << 60, "count");
  expect("offset", 0, "offset");  // over the other tensors
  expect("offset", 4000, "offset");
  expect("stride", 4095, "stride");
  expect("stride", int64_t{1} << 60, "stride");
  json manifest = SmallJson();
  manifest["files"][0]["experts"]["stride"] = 4096;
  manifest["files"][0]["experts"]["tensors"][1]["offset"] = 4032;
  ExpectRefused(manifest, "down of an expert of layer-001.bin: runs past the end");
}

TEST(PackManifestTest, RefusesWhatWouldTakeMuchMemory) {
  json manifest = SmallJson();
  manifest["files"][0]["experts"]["prefix"] = std::string(257, 'x');
  ExpectRefused(manifest, "field \"prefix\"");
  manifest = SmallJson();
  manifest["files"][0]["tensors"][0]["name"] = "";
  ExpectRefused(manifest, "field \"name\"");
  manifest = SmallJson();
  constexpr int64_t kMany = 1 << 20;
  json& experts = manifest["files"][0]["experts"];
  experts["count"] = kMany;
  experts["xxh3"] = json::array_t(kMany, kHash);
  manifest["files"][0]["bytes"] =
      experts["offset"].get<int64_t>() + kMany * experts["stride"].get<int64_t>();
  ExpectRefused(manifest, "more than 1048576 tensors");
}

TEST(PackManifestTest, RefusesAHashThatIsNone) {
  for (const char* hash : {"", "0123", "0123456789abcdef0123456789abcdeg"}) {
    json manifest = SmallJson();
    manifest["files"][0]["xxh3"] = hash;
    ExpectRefused(manifest, "xxh3");
    manifest = SmallJson();
    manifest["files"][0]["experts"]["xxh3"][1] = hash;
    ExpectRefused(manifest, "experts of layer-001.bin: field \"xxh3\"");
  }
}

}  // namespace
}  // namespace caravan
