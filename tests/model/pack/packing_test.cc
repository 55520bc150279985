// Packing that is interrupted, refused or goes wrong, and packs that are damaged.

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/safetensors.h"
#include "model/stored_model_cost.h"
#include "tests/model/pack/packer_testing.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class PackingTest : public PackerTest {};

TEST_F(PackingTest, WhatIsInterruptedIsNoPackAndGoesOn) {
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

TEST_F(PackingTest, AnUnfinishedPackOfOtherOptionsIsNotGoneOnWith) {
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

TEST_F(PackingTest, AnUnfinishedPackOfAnotherSourceIsNotGoneOnWith) {
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

TEST_F(PackingTest, AFinishedPackDoesNotSayWhereItWasMade) {
  const auto packed = MustPack(Options("q", {DType::kQ8_0, DType::kQ8_0}));
  EXPECT_FALSE(packed->manifest().origin.has_value());
  const json manifest = *ReadJsonFile(JoinPath(packed->path(), kPackManifestName));
  EXPECT_FALSE(manifest.contains("origin"));
}

TEST_F(PackingTest, TwoDoNotPackIntoOneDirectory) {
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

TEST_F(PackingTest, WhatAKilledProcessLeftGoes) {
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

TEST_F(PackingTest, APackIsNotPackedOver) {
  const PackOptions options = Options("q", {DType::kQ8_0, DType::kQ8_0});
  const auto packed = MustPack(options);
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kFailedPrecondition);
  PackOptions again = Options("again", {});
  const absl::Status repacked = Pack(*packed, again);
  EXPECT_EQ(repacked.code(), absl::StatusCode::kInvalidArgument) << repacked;
  EXPECT_THAT(std::string(repacked.message()), HasSubstr("packed already"));
}

TEST_F(PackingTest, ASourceIsNotPackedIntoItself) {
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

TEST_F(PackingTest, AWeightThatIsNoNumberIsNamedWithItsModel) {
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

TEST_F(PackingTest, AMissingTensorIsNamedWithItsModel) {
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

TEST_F(PackingTest, TextFilesAreCoveredWhereTheManifestHasTheirHashes) {
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

TEST_F(PackingTest, MessagesCallItWhatItIs) {
  PackOptions options = Options("made", {});
  options.doing = "making";
  options.progress = [](int64_t, int64_t) { return false; };
  EXPECT_THAT(std::string(Pack(*source_, options).message()), HasSubstr("making was stopped"));
}

TEST_F(PackingTest, ADamagedPackIsFound) {
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

TEST_F(PackingTest, ADirectoryThatCannotBeMadeIsNamed) {
  PackOptions options = Options("x", {});
  options.output = "/dev/null/pack";
  const absl::Status status = Pack(*source_, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/null/pack"));
  options.output = "";
  EXPECT_EQ(Pack(*source_, options).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace caravan
