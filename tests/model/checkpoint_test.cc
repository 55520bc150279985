#include "model/checkpoint.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/published_configs.h"
#include "tests/model/safetensors_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kShard1[] = "model-00001-of-000002.safetensors";
constexpr char kShard2[] = "model-00002-of-000002.safetensors";

json Index() {
  return {{"metadata", {{"total_size", 16}}},
          {"weight_map", {{"x", kShard1}, {"y", kShard2}, {"z", kShard1}}}};
}
json Header1() {
  return {{"x", TensorHeader("F32", {1}, 0, 4)}, {"z", TensorHeader("BF16", {2}, 4, 8)}};
}
json Header2() { return {{"y", TensorHeader("F8_E4M3", {2, 4}, 0, 8)}}; }

/// A checkpoint of three small tensors in two shards, to be spoilt. (What tensors a model needs is
/// not a checkpoint's business.)
class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    dir_.Write("config.json", DeepSeekR1Config().dump());
    WriteIndex(Index());
    WriteShard(kShard1, Header1(), "xxxxzzzz");
    WriteShard(kShard2, Header2(), "yyyyyyyy");
  }

  void WriteIndex(const json& index) { dir_.Write("model.safetensors.index.json", index.dump()); }
  void WriteShard(const std::string& name, const json& header, const std::string& data) {
    dir_.Write(name, SafetensorsBytes(header.dump(), data));
  }

  uint64_t Fingerprint() {
    const auto checkpoint = Checkpoint::Open(dir_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? (*checkpoint)->fingerprint() : 0;
  }

  void ExpectRefused(absl::StatusCode code, const std::vector<std::string>& words) {
    const absl::Status status = Checkpoint::Open(dir_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& word : words) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    }
  }

  TempDir dir_;
};

TEST_F(CheckpointTest, FindsTensorsInTheirShards) {
  const auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->path(), dir_.path());
  EXPECT_EQ((*checkpoint)->config().hidden_size, 7168);
  EXPECT_EQ((*checkpoint)->config_json(), DeepSeekR1Config().dump());
  EXPECT_THAT((*checkpoint)->TensorNames(), ElementsAre("x", "y", "z"));
  EXPECT_EQ((*checkpoint)->Find("w"), nullptr);
  EXPECT_THAT((*checkpoint)->Find("y")->shape, ElementsAre(2, 4));
  std::string bytes(4, ' ');
  ASSERT_TRUE(
      (*checkpoint)->Read("z", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 4)).ok());
  EXPECT_EQ(bytes, "zzzz");
}

TEST_F(CheckpointTest, ReadsTheFixtures) {
  for (const char* directory :
       {"models/tiny-r1", "tests/data/goldens/v3-like", "tests/data/goldens/kimi-k2-like",
        "tests/data/goldens/v2-lite-like"}) {
    const std::string path = std::string(CARAVAN_SOURCE_DIR "/") + directory;
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const absl::StatusOr<std::string> index =
        ReadFile(JoinPath(path, "model.safetensors.index.json"), 1 << 24);
    ASSERT_TRUE(index.ok()) << index.status();
    const json total = json::parse(*index)["metadata"]["total_size"];
    int64_t bytes = 0;
    for (const std::string& name : (*checkpoint)->TensorNames()) {
      bytes += (*checkpoint)->Find(name)->num_bytes();
    }
    EXPECT_EQ(bytes, total.get<int64_t>()) << directory;
  }
}

TEST_F(CheckpointTest, ReadsASingleFileWithoutIndex) {
  std::filesystem::remove(dir_.File("model.safetensors.index.json"));
  ExpectRefused(absl::StatusCode::kNotFound,
                {dir_.path(), "model.safetensors.index.json", "nor model.safetensors"});
  WriteShard("model.safetensors", Header2(), "yyyyyyyy");
  const auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->TensorNames(), ElementsAre("y"));
}

TEST_F(CheckpointTest, NamesWhatIsMissing) {
  std::filesystem::remove(dir_.File(kShard2));
  ExpectRefused(absl::StatusCode::kNotFound, {dir_.File(kShard2), "tensor y"});
  std::filesystem::remove(dir_.File("config.json"));
  ExpectRefused(absl::StatusCode::kNotFound, {dir_.File("config.json")});
}

TEST_F(CheckpointTest, NamesTensorAndShardThatDisagree) {
  WriteShard(kShard1, {{"x", TensorHeader("F32", {2}, 0, 8)}}, "xxxxxxxx");
  ExpectRefused(absl::StatusCode::kInvalidArgument,
                {"model.safetensors.index.json", "tensor z", kShard1});
}

TEST_F(CheckpointTest, NamesAMalformedFile) {
  WriteShard(kShard2, Header2(), "yyy");
  ExpectRefused(absl::StatusCode::kInvalidArgument, {dir_.File(kShard2), "tensor y"});
  // Only what is wrong: the tensor that led to the file is not.
  json header = Header1();
  header["z"]["dtype"] = "Q9";
  WriteShard(kShard1, header, "xxxxzzzz");
  const std::string message(Checkpoint::Open(dir_.path()).status().message());
  EXPECT_THAT(message, AllOf(HasSubstr(dir_.File(kShard1)), HasSubstr("tensor z"),
                             Not(HasSubstr("tensor x"))));
  dir_.Write("config.json", "{}");
  ExpectRefused(absl::StatusCode::kInvalidArgument, {dir_.File("config.json"), "model_type"});
}

TEST_F(CheckpointTest, KeepsShardsInsideItsDirectory) {
  for (const std::string& name :
       {std::string("../model.safetensors"), std::string("/etc/model.safetensors"),
        std::string("a/b.safetensors"), std::string(".."), std::string(),
        std::string("config.json"), std::string("a\0.safetensors", 14)}) {
    json index = Index();
    index["weight_map"]["y"] = name;
    WriteIndex(index);
    ExpectRefused(absl::StatusCode::kInvalidArgument,
                  {dir_.File("model.safetensors.index.json"), "weight_map", "\"y\""});
  }
}

TEST_F(CheckpointTest, RefusesAnIndexWithoutAMap) {
  const std::string path = dir_.File("model.safetensors.index.json");
  for (const json& map : {json(nullptr), json::array(), json::object(), json("x")}) {
    json index = Index();
    index["weight_map"] = map;
    WriteIndex(index);
    ExpectRefused(absl::StatusCode::kInvalidArgument, {path, "weight_map"});
  }
  json index = Index();
  index["weight_map"]["y"] = 7;
  WriteIndex(index);
  ExpectRefused(absl::StatusCode::kInvalidArgument, {path, "weight_map", "\"y\""});
  dir_.Write("model.safetensors.index.json", "[");
  ExpectRefused(absl::StatusCode::kInvalidArgument, {path, "not valid JSON"});
}

TEST_F(CheckpointTest, FingerprintsTheLayoutAlone) {
  const uint64_t original = Fingerprint();
  EXPECT_EQ(Fingerprint(), original);
  WriteShard(kShard1, Header1(), "XXXXZZZZ");
  EXPECT_EQ(Fingerprint(), original) << "values are no part of it";

  std::vector<uint64_t> seen = {original};
  const auto expect_new = [&](const char* what) {
    const uint64_t changed = Fingerprint();
    EXPECT_EQ(std::count(seen.begin(), seen.end(), changed), 0) << what;
    seen.push_back(changed);
  };
  json header = Header2();
  header["y"]["shape"] = {4, 2};
  WriteShard(kShard2, header, "yyyyyyyy");
  expect_new("shape");
  header["y"] = TensorHeader("F16", {2, 2}, 0, 8);
  WriteShard(kShard2, header, "yyyyyyyy");
  expect_new("dtype");
  WriteShard(kShard2, Header2(), "yyyyyyyy");
  WriteShard(kShard1,
             {{"z", TensorHeader("BF16", {2}, 0, 4)}, {"x", TensorHeader("F32", {1}, 4, 8)}},
             "zzzzxxxx");
  expect_new("place in the shard");
  WriteShard(kShard1, Header1(), "xxxxzzzz");
  dir_.Write("config.json", DeepSeekR1Config().dump(1));
  expect_new("config.json");
}

TEST_F(CheckpointTest, FingerprintIsTheSameOnEveryMachine) {
  // Computed by another program as well. Changes only with the format of the fingerprint, which
  // workers of one cluster compare.
  const auto checkpoint = Checkpoint::Open(CARAVAN_SOURCE_DIR "/models/tiny-r1");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->fingerprint(), 14646358645318052933u);
}

TEST_F(CheckpointTest, SurvivesAMutatedIndex) {
  const std::string valid = Index().dump();
  std::mt19937_64 random(20240609);
  for (int round = 0; round < 2000; ++round) {
    std::string text = valid;
    for (uint64_t edits = 1 + random() % 2; edits > 0; --edits) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    dir_.Write("model.safetensors.index.json", text);
    const absl::Status status = Checkpoint::Open(dir_.path()).status();
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument ||
                status.code() == absl::StatusCode::kNotFound)
        << "round " << round << ": " << status;
  }
}

}  // namespace
}  // namespace caravan
