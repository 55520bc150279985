#include "model/safetensors.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/safetensors_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Three tensors in 16 bytes of data: "a" f32 [2], "b" f8 [2, 3], "c" bf16 scalar.
json SmallHeader() {
  return {{"__metadata__", {{"format", "pt"}}},
          {"b", TensorHeader("F8_E4M3", {2, 3}, 8, 14)},
          {"a", TensorHeader("F32", {2}, 0, 8)},
          {"c", TensorHeader("BF16", json::array(), 14, 16)}};
}
constexpr char kData[] = "0123456789abcdef";

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(absl::string_view bytes) {
    return SafetensorsFile::Open(dir_.Write("x.safetensors", bytes));
  }

  void ExpectBytesRefused(absl::string_view bytes, const std::string& who,
                          const std::string& cause) {
    const absl::Status status = OpenBytes(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << cause << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(dir_.File("x.safetensors")), HasSubstr(who), HasSubstr(cause)));
  }

  void ExpectRefused(const json& header, const std::string& who, const std::string& cause) {
    ExpectBytesRefused(SafetensorsBytes(header.dump(), kData), who, cause);
  }

  TempDir dir_;
};

TEST_F(SafetensorsTest, ReadsTensors) {
  const auto file = OpenBytes(SafetensorsBytes(SmallHeader().dump() + "   ", kData));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), dir_.File("x.safetensors"));
  EXPECT_THAT((*file)->TensorNames(), ElementsAre("a", "b", "c"));
  EXPECT_EQ((*file)->Find("d"), nullptr);
  EXPECT_EQ((*file)->Find("__metadata__"), nullptr);
  const TensorInfo* const b = (*file)->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF8E4M3);
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  std::string bytes(6, ' ');
  ASSERT_TRUE(
      (*file)->Read("b", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 6)).ok());
  EXPECT_EQ(bytes, "89abcd");
  EXPECT_EQ(std::memcmp((*file)->Bytes("c").data(), "ef", 2), 0);
  EXPECT_EQ((*file)->Bytes("c").size(), 2u);
  EXPECT_EQ((*file)->Offset("c") - (*file)->Offset("a"), 14);
  EXPECT_EQ((*file)->Offset("a"), 8 + static_cast<int64_t>(SmallHeader().dump().size()) + 3);
}

TEST_F(SafetensorsTest, ReadsAcrossPagesAgainAndAgain) {
  std::string data(40000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 37 + i / 256);
  const json header = {{"a", TensorHeader("F8_E4M3", {3}, 0, 3)},
                       {"b", TensorHeader("F8_E4M3", {39997}, 3, 40000)}};
  const auto file = OpenBytes(SafetensorsBytes(header.dump(), data));
  ASSERT_TRUE(file.ok()) << file.status();
  for (int round = 0; round < 3; ++round) {
    std::string bytes(39997, ' ');
    ASSERT_TRUE(
        (*file)
            ->Read("b", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()))
            .ok());
    EXPECT_EQ(bytes, data.substr(3)) << "round " << round;
  }
}

TEST_F(SafetensorsTest, ReadsTheFixture) {
  const auto file = SafetensorsFile::Open(CARAVAN_SOURCE_DIR
                                          "/tests/data/goldens/tiny-r1-golden-long.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->TensorNames(), ElementsAre("ids", "last_logits"));
  EXPECT_EQ((*file)->Find("ids")->dtype, DType::kI32);
  EXPECT_THAT((*file)->Find("last_logits")->shape, ElementsAre(8, 2048));
}

TEST_F(SafetensorsTest, NamesAMissingFile) {
  const absl::Status status = SafetensorsFile::Open(dir_.File("none")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("none")));
}

TEST_F(SafetensorsTest, RefusesATruncatedFile) {
  const std::string valid = SafetensorsBytes(SmallHeader().dump(), kData);
  ASSERT_TRUE(OpenBytes(valid).ok());
  for (size_t size = 0; size < valid.size(); ++size) {
    ExpectBytesRefused(absl::string_view(valid).substr(0, size), "", "");
  }
  ExpectBytesRefused("1234567", "", "truncated");
  ExpectBytesRefused(absl::string_view(valid).substr(0, 20), "", "truncated");
  ExpectBytesRefused(absl::string_view(valid).substr(0, valid.size() - 1), "tensor c",
                     "past the file's 15 bytes");
}

TEST_F(SafetensorsTest, RefusesAnAbsurdHeaderLength) {
  const std::string header = SmallHeader().dump();
  for (const uint64_t length :
       {uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7, uint64_t{1} << 63}) {
    ExpectBytesRefused(SafetensorsBytes(length, header, kData), "", "at most 100000000");
  }
  ExpectBytesRefused(SafetensorsBytes(header.size() + 17, header, kData), "", "truncated");
  ExpectBytesRefused(SafetensorsBytes(uint64_t{0}, header, kData), "header", "not valid JSON");
  ExpectBytesRefused(SafetensorsBytes(header.size() - 1, header, kData), "header",
                     "not valid JSON");
}

TEST_F(SafetensorsTest, RefusesAHeaderThatIsNoTable) {
  ExpectRefused(json::array(), "header", "must be a JSON object");
  ExpectRefused({{"a", 7}}, "tensor a", "must be a JSON object");
  const std::string twice = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                                "a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})";
  ExpectBytesRefused(SafetensorsBytes(twice, kData), "header", "key \"a\" is repeated");
}

TEST_F(SafetensorsTest, RefusesWhatATensorMayNotBe) {
  const auto with = [](const json& tensor) { return json({{"w", tensor}}); };
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    json tensor = TensorHeader("F32", {4}, 0, 16);
    tensor.erase(field);
    ExpectRefused(with(tensor), "tensor w", std::string("\"") + field + "\" is missing");
  }
  for (const char* dtype : {"I64", "BOOL", "F8_E5M2", "F64", "f32", "Q4_K", ""}) {
    ExpectRefused(with(TensorHeader(dtype, {2}, 0, 16)), "tensor w",
                  std::string("\"dtype\" is \"") + dtype + "\"");
  }
  for (const json& shape :
       {json({0}), json({4, 0}), json({-4}), json({2.0}), json({"4"}), json({{4}})}) {
    ExpectRefused(with(TensorHeader("F32", shape, 0, 16)), "tensor w", "positive integers");
  }
  for (const json& shape :
       {json({5}), json({int64_t{1} << 32, int64_t{1} << 32}), json({INT64_MAX, INT64_MAX}),
        json({2, INT64_MAX}), json({int64_t{1} << 62, 4, 4})}) {
    ExpectRefused(with(TensorHeader("F32", shape, 0, 16)), "tensor w", "\"shape\" makes more");
  }
  ExpectRefused(with(TensorHeader("F32", {UINT64_MAX}, 0, 16)), "tensor w", "\"shape\"");
  ExpectRefused(with(TensorHeader("F32", json::array({1, 1, 1, 1, 1, 1, 1, 1, 4}), 0, 16)),
                "tensor w", "at most 8 dimensions");
  ExpectRefused(with(TensorHeader("F32", "4", 0, 16)), "tensor w", "\"shape\" must be an array");
}

TEST_F(SafetensorsTest, RefusesOffsetsThatDisagree) {
  const auto at = [](const json& offsets) {
    json tensor = TensorHeader("F32", {4}, 0, 16);
    tensor["data_offsets"] = offsets;
    return json({{"w", tensor}});
  };
  for (const json& offsets : {json({16, 0}), json({-1, 15}), json::array({0}), json({0, 16, 16}),
                              json({0.0, 16.0}), json({"0", "16"}), json({0, UINT64_MAX})}) {
    ExpectRefused(at(offsets), "tensor w", "\"data_offsets\" must be [begin, end]");
  }
  ExpectRefused(at({0, 17}), "tensor w", "past the file's 16 bytes");
  ExpectRefused(at({0, INT64_MAX}), "tensor w", "past the file's 16 bytes");
  ExpectRefused(at({0, 15}), "tensor w", "span 15 bytes, but shape and dtype make 16");
}

TEST_F(SafetensorsTest, RefusesOverlapsAndGaps) {
  const auto two = [](int64_t begin, int64_t size) {
    return json({{"v", TensorHeader("F8_E4M3", {8}, 0, 8)},
                 {"w", TensorHeader("F8_E4M3", {size}, begin, begin + size)}});
  };
  ExpectRefused(two(7, 9), "tensor w", "overlaps");
  ExpectRefused(two(0, 16), "tensor", "overlaps");
  ExpectRefused(two(0, 8), "tensor w", "overlaps");
  ExpectRefused(two(9, 7), "tensor w", "leaves a gap");
  ExpectRefused(two(8, 7), "", "end at byte 15 of 16");
  ExpectRefused({{"v", TensorHeader("F8_E4M3", {15}, 1, 16)}}, "tensor v", "leaves a gap");
  ExpectRefused(json::object(), "", "end at byte 0 of 16");
}

TEST_F(SafetensorsTest, SurvivesMutatedBytes) {
  const std::string valid = SafetensorsBytes(SmallHeader().dump(), kData);
  std::mt19937_64 random(20240608);
  const std::string spice = "{}[]\",:0123456789-.e\\ abcF3268_EM";
  int opened = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = valid;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 1:
          bytes[at] = spice[random() % spice.size()];
          break;
        case 2:
          bytes[at] = static_cast<char>(random());
          break;
        default:
          bytes.resize(at + 1);
          break;
      }
    }
    const auto file = OpenBytes(bytes);
    if (!file.ok()) {
      EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
      continue;
    }
    ++opened;
    for (const std::string& name : (*file)->TensorNames()) {
      std::vector<std::byte> out(static_cast<size_t>((*file)->Find(name)->num_bytes()));
      EXPECT_TRUE((*file)->Read(name, absl::MakeSpan(out)).ok()) << "round " << round;
    }
  }
  EXPECT_GT(opened, 0);  // Some edits touch only data or metadata.
}

}  // namespace
}  // namespace caravan
