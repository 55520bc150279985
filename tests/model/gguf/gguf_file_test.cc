#include "model/gguf/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/dequantize.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;
constexpr uint32_t kF16 = 1;
constexpr uint32_t kQ4_0 = 2;

// Three tensors: "a" f32 [2], "b" q4_0 [2, 32], "c" f16 [3, 1].
GgufWriter SmallFile() {
  GgufWriter writer;
  writer.SetString("general.architecture", "deepseek2");
  writer.Set("an.u32", uint32_t{7});
  writer.SetStrings("some.strings", {"x", "", "\u4e00"});
  writer.SetArray("some.floats", std::vector<float>{1, -2.5f});
  writer.Set("a.bool", true);
  writer.AddTensor("a", {2}, kF32, "01234567");
  writer.AddTensor("b", {2, 32}, kQ4_0, std::string(36, 'b'));
  writer.AddTensor("c", {3, 1}, kF16, "cdefgh");
  return writer;
}

class GgufFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(absl::string_view bytes) {
    return GgufFile::Open(dir_.Write("x.gguf", bytes));
  }

  std::unique_ptr<GgufFile> MustOpen(const GgufWriter& writer) {
    absl::StatusOr<std::unique_ptr<GgufFile>> file = OpenBytes(writer.Bytes());
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : nullptr;
  }

  void ExpectMessage(const absl::Status& status, const std::string& who, const std::string& cause) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << cause << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(dir_.File("x.gguf")), HasSubstr(who), HasSubstr(cause)));
  }

  void ExpectBytesRefused(absl::string_view bytes, const std::string& who,
                          const std::string& cause) {
    ExpectMessage(OpenBytes(bytes).status(), who, cause);
  }

  void ExpectRefused(const GgufWriter& writer, const std::string& who, const std::string& cause) {
    ExpectBytesRefused(writer.Bytes(), who, cause);
  }

  TempDir dir_;
};

TEST_F(GgufFileTest, ReadsTensorsOfBothVersions) {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer = SmallFile();
    writer.version = version;
    const std::unique_ptr<GgufFile> file = MustOpen(writer);
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(file->path(), dir_.File("x.gguf"));
    EXPECT_THAT(file->TensorNames(), ElementsAre("a", "b", "c"));
    EXPECT_EQ(file->Find("d"), nullptr);
    EXPECT_EQ(file->Find("b")->dtype, DType::kQ4_0);
    EXPECT_THAT(file->Find("b")->shape, ElementsAre(2, 32));
    EXPECT_EQ(file->Find("b")->num_bytes(), 36);
    EXPECT_THAT(file->Find("c")->shape, ElementsAre(3, 1));
    std::string bytes(6, ' ');
    ASSERT_TRUE(
        file->Read("c", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 6)).ok());
    EXPECT_EQ(bytes, "cdefgh");
    ASSERT_TRUE(
        file->ReadPart("a", 3, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 2)).ok());
    EXPECT_EQ(bytes.substr(0, 2), "34");
    EXPECT_EQ(std::memcmp(file->Bytes("a").data(), "01234567", 8), 0);
    EXPECT_EQ(file->Offset("b") - file->Offset("a"), 32);
    EXPECT_EQ(file->Offset("a") % 32, 0);
  }
}

TEST_F(GgufFileTest, KnowsTheBlockFormatsByTheFormatsNumbers) {
  GgufWriter writer;
  const std::vector<DType> dtypes = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0,
                                     DType::kQ8_0, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,
                                     DType::kQ5_K, DType::kQ6_K};
  for (const DType dtype : dtypes) {
    writer.AddTensor(DTypeName(dtype), {2, 256}, GgufTypeCode(dtype),
                     std::string(static_cast<size_t>(DTypeBytes(dtype, 512)), 'x'));
  }
  const std::unique_ptr<GgufFile> file = MustOpen(writer);
  ASSERT_NE(file, nullptr);
  for (const DType dtype : dtypes) {
    const TensorInfo* const info = file->Find(DTypeName(dtype));
    ASSERT_NE(info, nullptr) << DTypeName(dtype);
    EXPECT_EQ(info->dtype, dtype);
    EXPECT_EQ(info->num_bytes(), DTypeBytes(dtype, 512));
  }
}

/// A format of 32 values that comes as another one, and value i of a block of it, by ggml's
/// definition.
struct ForeignFormat {
  uint32_t code;
  const char* name;
  int64_t block_bytes;
  DType as;
  float (*value)(const uint8_t* block, int i);
};

float HalfAt(const uint8_t* bytes) {
  return Float16ToFloat(static_cast<uint16_t>(bytes[0] | bytes[1] << 8));
}
int NibbleAt(const uint8_t* bytes, int i) { return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4; }
int FifthAt(const uint8_t* bytes, int i) {
  const uint32_t word = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | uint32_t{bytes[3]} << 24;
  return (word >> i & 1) != 0 ? 16 : 0;
}

constexpr ForeignFormat kForeignFormats[] = {
    {3, "Q4_1", 20, DType::kF32,
     [](const uint8_t* b, int i) {
       return HalfAt(b) * static_cast<float>(NibbleAt(b + 4, i)) + HalfAt(b + 2);
     }},
    {6, "Q5_0", 22, DType::kQ8_0,
     [](const uint8_t* b, int i) {
       return HalfAt(b) * static_cast<float>(NibbleAt(b + 6, i) + FifthAt(b + 2, i) - 16);
     }},
    {7, "Q5_1", 24, DType::kF32,
     [](const uint8_t* b, int i) {
       return HalfAt(b) * static_cast<float>(NibbleAt(b + 8, i) + FifthAt(b + 4, i)) +
              HalfAt(b + 2);
     }},
    {20, "IQ4_NL", 18, DType::kQ8_0,
     [](const uint8_t* b, int i) {
       constexpr float kValues[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
       return HalfAt(b) * kValues[NibbleAt(b + 2, i)];
     }},
};

TEST_F(GgufFileTest, FormatsWithoutKernelsComeAsOnesThatHoldTheirValues) {
  // More blocks than are converted at a time.
  constexpr int64_t kRows = 3;
  constexpr int64_t kCols = 64 * 1024;
  constexpr int64_t kBlocks = kRows * kCols / 32;
  GgufWriter writer;
  std::mt19937 random(1);
  std::map<std::string, std::string> stored;
  for (const ForeignFormat& format : kForeignFormats) {
    std::string bytes(static_cast<size_t>(kBlocks * format.block_bytes), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    for (int64_t block = 0; block < kBlocks; ++block) {
      // Finite d and m.
      bytes[static_cast<size_t>(block * format.block_bytes + 1)] &= static_cast<char>(0xbf);
      bytes[static_cast<size_t>(block * format.block_bytes + 3)] &= static_cast<char>(0xbf);
    }
    writer.AddTensor(format.name, {kRows, kCols}, format.code, bytes);
    stored[format.name] = std::move(bytes);
  }
  const std::unique_ptr<GgufFile> file = MustOpen(writer);
  ASSERT_NE(file, nullptr);
  for (const ForeignFormat& format : kForeignFormats) {
    SCOPED_TRACE(format.name);
    const TensorInfo& info = *file->Find(format.name);
    EXPECT_EQ(info.dtype, format.as);
    EXPECT_EQ(info.shape, (std::vector<int64_t>{kRows, kCols}));
    EXPECT_EQ(file->Bytes(format.name).size(), stored[format.name].size());
    std::vector<std::byte> read(static_cast<size_t>(info.num_bytes()));
    ASSERT_TRUE(file->Read(format.name, absl::MakeSpan(read)).ok());
    std::vector<float> values(kRows * kCols);
    DequantizeRow(format.as, read.data(), kRows * kCols, values.data());
    int64_t wrong = 0;
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const auto* const block = reinterpret_cast<const uint8_t*>(stored[format.name].data()) +
                                i / 32 * format.block_bytes;
      if (values[static_cast<size_t>(i)] != format.value(block, static_cast<int>(i % 32))) ++wrong;
    }
    EXPECT_EQ(wrong, 0);
    for (const auto& [offset, size] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {1, 33}, {33, 1}, {34, 34}, {100, 1000}, {info.num_bytes() - 5, 5}}) {
      std::vector<std::byte> part(static_cast<size_t>(size));
      ASSERT_TRUE(file->ReadPart(format.name, offset, absl::MakeSpan(part)).ok());
      EXPECT_EQ(std::memcmp(part.data(), read.data() + offset, part.size()), 0) << offset;
    }
  }
}

TEST_F(GgufFileTest, ReadsMetadataOfEveryType) {
  GgufWriter writer;
  writer.Set("u8", uint8_t{255});
  writer.Set("i8", int8_t{-128});
  writer.Set("u16", uint16_t{65535});
  writer.Set("i16", int16_t{-32768});
  writer.Set("u32", uint32_t{4294967295});
  writer.Set("i32", std::numeric_limits<int32_t>::min());
  writer.Set("u64", uint64_t{1} << 62);
  writer.Set("i64", std::numeric_limits<int64_t>::min());
  writer.Set("f32", 1e-6f);
  writer.Set("f64", 0.1);
  writer.Set("true", true);
  writer.Set("false", false);
  writer.SetString("string", "gr\u00fc\u00df");
  writer.SetString("empty", "");
  writer.SetStrings("strings", {"a b", ""});
  writer.SetArray("i16s", std::vector<int16_t>{-1, 300});
  writer.SetArray("none", std::vector<uint64_t>{});
  const std::unique_ptr<GgufFile> file = MustOpen(writer);
  ASSERT_NE(file, nullptr);
  const GgufMetadata& metadata = file->metadata();
  const std::vector<std::pair<const char*, int64_t>> integers = {
      {"u8", 255},
      {"i8", -128},
      {"u16", 65535},
      {"i16", -32768},
      {"u32", 4294967295},
      {"i32", std::numeric_limits<int32_t>::min()},
      {"u64", int64_t{1} << 62},
      {"i64", std::numeric_limits<int64_t>::min()}};
  for (const auto& [key, value] : integers) {
    const auto read = metadata.Int(key, INT64_MIN, INT64_MAX);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, value) << key;
  }
  EXPECT_EQ(*metadata.Number("f32"), 1e-6) << "not the double that the float32 is";
  EXPECT_EQ(*metadata.Number("f64"), 0.1);
  EXPECT_EQ(*metadata.Number("u8"), 255);
  EXPECT_TRUE(*metadata.Bool("true"));
  EXPECT_FALSE(*metadata.Bool("false"));
  EXPECT_EQ(*metadata.String("string"), "gr\u00fc\u00df");
  EXPECT_EQ(*metadata.String("empty"), "");
  EXPECT_THAT(*metadata.Strings("strings"), ElementsAre("a b", ""));
  EXPECT_THAT(*metadata.Ints("i16s"), ElementsAre(-1, 300));
  EXPECT_THAT(*metadata.Ints("none"), ElementsAre());
  EXPECT_TRUE(metadata.Has("none"));
  EXPECT_FALSE(metadata.Has("nothing"));
}

TEST_F(GgufFileTest, NamesMetadataThatAreNotAsAskedFor) {
  GgufWriter writer = SmallFile();
  writer.SetString("latin1", "\xfc");
  writer.SetStrings("latin1s", {"ok", "\xfc"});
  writer.Set("huge", UINT64_MAX);
  writer.Set("nan", std::numeric_limits<float>::quiet_NaN());
  const std::unique_ptr<GgufFile> file = MustOpen(writer);
  ASSERT_NE(file, nullptr);
  const GgufMetadata& m = file->metadata();
  ExpectMessage(m.Int("gone", 0, 9).status(), "\"gone\"", "is missing");
  ExpectMessage(m.Strings("gone").status(), "\"gone\"", "is missing");
  EXPECT_EQ(*m.Int("gone", 0, 9, 5), 5);
  EXPECT_EQ(*m.Number("gone", 0.5), 0.5);
  EXPECT_TRUE(*m.Bool("gone", true));
  EXPECT_EQ(*m.String("gone", "x"), "x");
  ExpectMessage(m.Int("an.u32", 0, 6).status(), "\"an.u32\"", "integer from 0 to 6");
  ExpectMessage(m.Int("a.bool", 0, 6).status(), "\"a.bool\"", "integer from 0 to 6");
  ExpectMessage(m.Int("some.floats", 0, 6).status(), "\"some.floats\"", "integer from 0 to 6");
  ExpectMessage(m.Int("huge", 0, INT64_MAX).status(), "\"huge\"", "integer from 0");
  ExpectMessage(m.Number("nan").status(), "\"nan\"", "finite number");
  ExpectMessage(m.Number("a.bool").status(), "\"a.bool\"", "finite number");
  ExpectMessage(m.Bool("an.u32").status(), "\"an.u32\"", "must be a bool");
  ExpectMessage(m.String("an.u32").status(), "\"an.u32\"", "must be a string");
  ExpectMessage(m.String("some.strings").status(), "\"some.strings\"", "must be a string");
  ExpectMessage(m.String("latin1").status(), "\"latin1\"", "is not valid UTF-8");
  ExpectMessage(m.Strings("latin1s").status(), "\"latin1s\"", "not valid UTF-8 at element 1");
  ExpectMessage(m.Strings("some.floats").status(), "\"some.floats\"", "array of strings");
  ExpectMessage(m.Strings("general.architecture").status(), "architecture", "array of strings");
  ExpectMessage(m.Ints("some.floats").status(), "\"some.floats\"", "array of integers");
  ExpectMessage(m.Ints("an.u32").status(), "\"an.u32\"", "array of integers");
}

TEST_F(GgufFileTest, KeepsTheAlignmentThatTheFileNames) {
  GgufWriter writer;
  writer.alignment = 8;
  writer.Set("general.alignment", uint32_t{8});
  writer.AddTensor("a", {1}, kF32, "0123");
  writer.AddTensor("b", {1}, kF32, "4567");
  const std::unique_ptr<GgufFile> file = MustOpen(writer);
  ASSERT_NE(file, nullptr);
  EXPECT_EQ(file->Offset("b") - file->Offset("a"), 8);
  EXPECT_EQ(std::memcmp(file->Bytes("b").data(), "4567", 4), 0);

  for (const uint32_t alignment : {0u, 1u, 12u, 65544u}) {
    GgufWriter bad;
    bad.Set("general.alignment", alignment);
    ExpectRefused(bad, "\"general.alignment\"", "must be");
  }
  GgufWriter text;
  text.SetString("general.alignment", "32");
  ExpectRefused(text, "\"general.alignment\"", "must be an integer");
}

TEST_F(GgufFileTest, ReadsAFileOfMetadataAlone) {
  GgufWriter writer;
  writer.Set("split.no", uint16_t{0});
  std::string bytes = writer.Bytes();
  EXPECT_TRUE(OpenBytes(bytes).ok());
  bytes.resize(4 + 4 + 8 + 8 + (8 + 8) + 4 + 2);  // no padding behind the pairs
  const auto file = OpenBytes(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->TensorNames().empty());
}

TEST_F(GgufFileTest, NamesAMissingFile) {
  const absl::Status status = GgufFile::Open(dir_.File("none")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("none")));
}

TEST_F(GgufFileTest, RefusesATruncatedFile) {
  const std::string valid = SmallFile().Bytes();
  ASSERT_TRUE(OpenBytes(valid).ok());
  for (size_t size = 0; size < valid.size(); ++size) {
    ExpectBytesRefused(absl::string_view(valid).substr(0, size), "", "");
  }
  ExpectBytesRefused(absl::string_view(valid).substr(0, 6), "", "truncated");
  ExpectBytesRefused(absl::string_view(valid).substr(0, 50), "metadata", "truncated");
  ExpectBytesRefused(absl::string_view(valid).substr(0, 26), "",
                     "truncated: the file ends within its metadata, at key 1 of ");
  ExpectBytesRefused(absl::string_view(valid).substr(0, valid.size() - 1), "tensor c",
                     "the file may be truncated");
}

TEST_F(GgufFileTest, RefusesOtherFormatsAndVersions) {
  ExpectBytesRefused("PK\3\4 and so on", "", "is not a GGUF file");
  ExpectBytesRefused("GGU", "", "is not a GGUF file");
  GgufWriter writer = SmallFile();
  for (const uint32_t version : {0u, 1u, 4u, UINT32_MAX}) {
    writer.version = version;
    ExpectRefused(writer, "", "version");
  }
  writer.version = 3u << 24;
  ExpectRefused(writer, "", "big-endian");
}

TEST_F(GgufFileTest, RefusesCountsThatTheFileCannotHold) {
  const std::string valid = SmallFile().Bytes();
  for (const size_t field : {size_t{8}, size_t{16}}) {  // of tensors, of pairs
    for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 32, UINT64_MAX}) {
      std::string bytes = valid;
      std::string text;
      AppendLittleEndian(count, text);
      bytes.replace(field, 8, text);
      ExpectBytesRefused(bytes, "", "");
    }
  }
  for (const uint64_t count : {uint64_t{1} << 23, (uint64_t{1} << 24) + 1, UINT64_MAX}) {
    for (const uint32_t type : {0u, 8u, 12u}) {
      std::string array;
      AppendLittleEndian(type, array);
      AppendLittleEndian(count, array);
      GgufWriter writer;
      writer.SetRaw("an.array", 9, array);
      ExpectRefused(writer, "\"an.array\"", count > 1 << 24 ? "at most 16777216" : "truncated");
    }
  }
  for (const uint64_t length : {uint64_t{100}, UINT64_MAX}) {
    std::string text;
    AppendLittleEndian(length, text);
    GgufWriter writer;
    writer.SetRaw("a.string", 8, text);
    ExpectRefused(writer, "\"a.string\"", "truncated");
  }
}

TEST_F(GgufFileTest, RefusesMalformedMetadata) {
  GgufWriter nested;
  std::string array;
  AppendLittleEndian(uint32_t{9}, array);
  AppendLittleEndian(uint64_t{1}, array);
  nested.SetRaw("k", 9, array);
  ExpectRefused(nested, "key \"k\"", "array of arrays");

  GgufWriter unknown;
  unknown.SetRaw("k", 13, "1234");
  ExpectRefused(unknown, "key \"k\"", "unknown type 13");

  GgufWriter half_bool;
  half_bool.SetRaw("k", 7, "\2");
  ExpectRefused(half_bool, "key \"k\"", "neither 0 nor 1");

  GgufWriter twice;
  twice.Set("k", true);
  twice.Set("k", true);
  ExpectRefused(twice, "key \"k\"", "is repeated");

  for (const std::string& key : {std::string(), std::string("a b"), std::string("\xfc"),
                                 std::string("a\0b", 3), std::string(65536, 'k')}) {
    GgufWriter named;
    named.Set("first", true);
    named.Set(key, true);
    ExpectRefused(named, "key 2 of 2", "printable ASCII");
  }
}

TEST_F(GgufFileTest, RefusesWhatATensorMayNotBe) {
  const auto with = [](const std::string& name, const std::vector<int64_t>& shape, uint32_t type) {
    GgufWriter writer;
    writer.AddTensor(name, shape, type, std::string(256, 'x'));
    return writer;
  };
  for (const auto& [type, name] : std::vector<std::pair<uint32_t, std::string>>{
           {9, "Q8_1"}, {16, "IQ2_XXS"}, {23, "IQ4_XS"}, {28, "F64"}, {39, "MXFP4"}}) {
    ExpectRefused(with("w", {2, 32}, type), "tensor w", "type " + name + ", which is not");
  }
  for (const uint32_t type : {4u, 31u, 40u, UINT32_MAX}) {
    ExpectRefused(with("w", {2, 32}, type), "tensor w", "the unknown type");
  }
  ExpectRefused(with("w", {}, kF32), "tensor w", "0 dimensions");
  ExpectRefused(with("w", {1, 1, 1, 1, 1}, kF32), "tensor w", "5 dimensions");
  ExpectRefused(with("w", {2, 0}, kF32), "tensor w", "dimension of 0");
  ExpectRefused(with("w", {2, 33}, kQ4_0), "tensor w", "no whole Q4_0 blocks of 32");
  ExpectRefused(with("w", {33, 2}, kQ4_0), "tensor w", "no whole Q4_0 blocks of 32");
  ExpectRefused(with("w", {65}, kF32), "tensor w", "past the file's 256 bytes");
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1000},
                                            {int64_t{1} << 32, int64_t{1} << 32},
                                            {-1},
                                            {-1, -1},
                                            {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX},
                                            {int64_t{1} << 62, 4}}) {
    ExpectRefused(with("w", shape, kF32), "tensor w", "more elements than the file holds");
  }
  for (const std::string& name : {std::string(), std::string(65, 'n'), std::string("\xff")}) {
    ExpectRefused(with(name, {1}, kF32), "tensor 1 of 1", "a name that is not UTF-8 of 1 to 64");
  }
}

TEST_F(GgufFileTest, RefusesTensorsInEachOthersPlace) {
  const auto two = [](const std::string& second, uint64_t offset, int64_t size) {
    GgufWriter writer;
    writer.AddTensorAt("v", {16}, kF32, 0, std::string(64, 'v'));
    writer.AddTensorAt(second, {size}, kF32, offset, std::string(64, 'w'));
    return writer;
  };
  EXPECT_TRUE(OpenBytes(two("w", 64, 16).Bytes()).ok());
  EXPECT_TRUE(OpenBytes(two("w", 96, 8).Bytes()).ok()) << "gaps do no harm";
  ExpectRefused(two("w", 32, 8), "tensor w", "overlaps tensor v, which ends at 64");
  ExpectRefused(two("w", 0, 8), "tensor", "overlaps");
  ExpectRefused(two("w", 65, 1), "tensor w", "no multiple of the alignment 32");
  ExpectRefused(two("w", 64, 17), "tensor w", "past the file's 128 bytes");
  ExpectRefused(two("w", uint64_t{1} << 40, 1), "tensor w", "past the file's 128 bytes");
  ExpectRefused(two("w", UINT64_MAX - 31, 8), "tensor w", "past the file's 128 bytes");
  ExpectRefused(two("v", 64, 16), "tensor v", "is repeated");
}

TEST_F(GgufFileTest, SurvivesMutatedBytes) {
  constexpr uint64_t kSeed = 20240610;
  const std::string valid = SmallFile().Bytes();
  const size_t header_bytes = valid.size() - (2 * 32 + 32 + 6);
  std::mt19937_64 random(kSeed);
  int opened = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = valid;
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      const size_t at = random() % std::min(bytes.size(), header_bytes);
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 1:
          bytes[at] = static_cast<char>(random() % 16);  // a type, a count
          break;
        case 2:
          bytes[at] = static_cast<char>(random());
          break;
        case 3:
          bytes[at] = static_cast<char>(0xff);
          break;
        default:
          if (random() % 4 == 0) bytes.resize(at + 1);
          break;
      }
    }
    const auto file = OpenBytes(bytes);
    if (!file.ok()) {
      EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument)
          << file.status() << ", round " << round << " of seed " << kSeed;
      continue;
    }
    ++opened;
    for (const std::string& name : (*file)->TensorNames()) {
      std::vector<std::byte> out(static_cast<size_t>((*file)->Find(name)->num_bytes()));
      EXPECT_TRUE((*file)->Read(name, absl::MakeSpan(out)).ok())
          << "round " << round << " of seed " << kSeed;
    }
    for (const char* key : {"general.architecture", "an.u32", "some.strings", "some.floats"}) {
      const GgufMetadata& metadata = (*file)->metadata();
      metadata.Int(key, INT64_MIN, INT64_MAX).IgnoreError();
      metadata.Number(key).IgnoreError();
      metadata.Bool(key).IgnoreError();
      metadata.String(key).IgnoreError();
      metadata.Strings(key).IgnoreError();
      metadata.Ints(key).IgnoreError();
    }
  }
  EXPECT_GT(opened, 0);  // Some edits touch only names and values.
}

}  // namespace
}  // namespace caravan
