// DequantizeRow against blocks laid out by hand from the formats' definition, field after field in
// the order of the bytes; nothing here calls kernels/quant/blocks.h.

#include "kernels/quant/dequantize.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/reference/reference_backend.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;

/// Unsigned fields as they are stored (before any offset), and the halves' bits.
struct Fields {
  uint16_t d = 0;
  uint16_t dmin = 0;
  std::vector<int> scales{};
  std::vector<int> mins{};
  std::vector<int> codes{};
};

/// Appends fields from the lowest bit of each byte up.
class BitWriter {
 public:
  void Put(int value, int width) {
    for (int bit = 0; bit < width; ++bit, ++position_) {
      if (position_ % 8 == 0) bytes_.push_back(std::byte{0});
      if (value >> bit & 1) bytes_.back() |= static_cast<std::byte>(1 << position_ % 8);
    }
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  int64_t position_ = 0;
  std::vector<std::byte> bytes_;
};

/// One format: how many sub-blocks and codes, the offsets of the stored integers, the order of the
/// bytes.
struct Format {
  DType dtype;
  int num_values;
  int num_subs;
  int code_bits;
  int code_offset;
  int scale_bits;  // 0: no scales
  int scale_offset;
  bool has_min;
  std::function<void(const Fields&, BitWriter&)> write;
};

void PutSixBitScales(const Fields& f, BitWriter& out) {
  for (int j = 0; j < 4; ++j) {  // 4 lower scales, with 2 upper bits of the upper ones
    out.Put(f.scales[j], 6);
    out.Put(f.scales[j + 4] / 16, 2);
  }
  for (int j = 0; j < 4; ++j) {
    out.Put(f.mins[j], 6);
    out.Put(f.mins[j + 4] / 16, 2);
  }
  for (int j = 0; j < 4; ++j) {
    out.Put(f.scales[j + 4] % 16, 4);
    out.Put(f.mins[j + 4] % 16, 4);
  }
}

/// 32 bytes, in byte b bit k the bit `bit` of code 32 k + b.
void PutBitPlane(const Fields& f, int bit, BitWriter& out) {
  for (int b = 0; b < 32; ++b) {
    for (int k = 0; k < 8; ++k) out.Put(f.codes[32 * k + b] >> bit & 1, 1);
  }
}

/// 64 bytes of the lower 2 bits: twice 32 bytes of 4 values 32 apart.
void PutLowPairs(const Fields& f, BitWriter& out) {
  for (int half = 0; half < 256; half += 128) {
    for (int b = 0; b < 32; ++b) {
      for (int k = 0; k < 4; ++k) out.Put(f.codes[half + 32 * k + b] % 4, 2);
    }
  }
}

/// 128 bytes of the lower 4 bits: pairs of values `distance` apart.
void PutLowNibbles(const Fields& f, int distance, BitWriter& out) {
  for (int chunk = 0; chunk < 256; chunk += 2 * distance) {
    for (int b = 0; b < distance; ++b) {
      out.Put(f.codes[chunk + b] % 16, 4);
      out.Put(f.codes[chunk + distance + b] % 16, 4);
    }
  }
}

std::vector<Format> Formats() {
  std::vector<Format> formats;
  formats.push_back({DType::kQ8_0, 32, 1, 8, 0, 0, 0, false, [](const Fields& f, BitWriter& out) {
                       out.Put(f.d, 16);
                       for (const int code : f.codes) out.Put(code, 8);
                     }});
  formats.push_back({DType::kQ4_0, 32, 1, 4, -8, 0, 0, false, [](const Fields& f, BitWriter& out) {
                       out.Put(f.d, 16);
                       for (int b = 0; b < 16; ++b) {
                         out.Put(f.codes[b], 4);
                         out.Put(f.codes[16 + b], 4);
                       }
                     }});
  formats.push_back({DType::kQ2_K, 256, 16, 2, 0, 4, 0, true, [](const Fields& f, BitWriter& out) {
                       for (int j = 0; j < 16; ++j) {
                         out.Put(f.scales[j], 4);
                         out.Put(f.mins[j], 4);
                       }
                       PutLowPairs(f, out);
                       out.Put(f.d, 16);
                       out.Put(f.dmin, 16);
                     }});
  formats.push_back(
      {DType::kQ3_K, 256, 16, 3, -4, 6, -32, false, [](const Fields& f, BitWriter& out) {
         PutBitPlane(f, 2, out);
         PutLowPairs(f, out);
         for (int j = 0; j < 8; ++j) {
           out.Put(f.scales[j] % 16, 4);
           out.Put(f.scales[8 + j] % 16, 4);
         }
         for (int j = 0; j < 4; ++j) {
           for (int k = 0; k < 4; ++k) out.Put(f.scales[4 * k + j] / 16, 2);
         }
         out.Put(f.d, 16);
       }});
  formats.push_back({DType::kQ4_K, 256, 8, 4, 0, 6, 0, true, [](const Fields& f, BitWriter& out) {
                       out.Put(f.d, 16);
                       out.Put(f.dmin, 16);
                       PutSixBitScales(f, out);
                       PutLowNibbles(f, 32, out);
                     }});
  formats.push_back({DType::kQ5_K, 256, 8, 5, 0, 6, 0, true, [](const Fields& f, BitWriter& out) {
                       out.Put(f.d, 16);
                       out.Put(f.dmin, 16);
                       PutSixBitScales(f, out);
                       PutBitPlane(f, 4, out);
                       PutLowNibbles(f, 32, out);
                     }});
  formats.push_back(
      {DType::kQ6_K, 256, 16, 6, -32, 8, 0, false, [](const Fields& f, BitWriter& out) {
         PutLowNibbles(f, 64, out);
         for (int half = 0; half < 256; half += 128) {
           for (int b = 0; b < 32; ++b) {
             for (int k = 0; k < 4; ++k) out.Put(f.codes[half + 32 * k + b] / 16, 2);
           }
         }
         for (const int scale : f.scales) out.Put(scale, 8);
         out.Put(f.d, 16);
       }});
  return formats;
}

Fields RandomFields(Rng& rng, const Format& format, uint16_t d, uint16_t dmin) {
  Fields f = {.d = d, .dmin = dmin};
  for (int s = 0; s < format.num_subs; ++s) {
    f.scales.push_back(static_cast<int>(RandomInt(rng, 0, (1 << format.scale_bits) - 1)));
    f.mins.push_back(static_cast<int>(RandomInt(rng, 0, (1 << format.scale_bits) - 1)));
  }
  for (int i = 0; i < format.num_values; ++i) {
    f.codes.push_back(static_cast<int>(RandomInt(rng, 0, (1 << format.code_bits) - 1)));
  }
  return f;
}

/// Two's complement where a format stores whole signed bytes, else the offset.
int Stored(int bits, int value, int offset) {
  return bits == 8 && value > 127 ? value - 256 : value + offset;
}

double ValueOf(const Format& format, const Fields& f, int i) {
  const int sub = i / (format.num_values / format.num_subs);
  const double d = Float16ToFloat(f.d);
  const double scale =
      format.scale_bits == 0 ? 1 : Stored(format.scale_bits, f.scales[sub], format.scale_offset);
  const double value = d * scale * Stored(format.code_bits, f.codes[i], format.code_offset);
  return format.has_min ? value - double{Float16ToFloat(f.dmin)} * f.mins[sub] : value;
}

void ExpectDequantizes(const Format& format, const std::vector<Fields>& blocks,
                       const std::string& what) {
  BitWriter row;
  row.Put(0, 8);  // So that the row is unaligned.
  for (const Fields& f : blocks) format.write(f, row);
  const int64_t n = format.num_values * static_cast<int64_t>(blocks.size());
  ASSERT_EQ(static_cast<int64_t>(row.bytes().size()) - 1, DTypeBytes(format.dtype, n));
  std::vector<double> exact(n + 1, 77);
  std::vector<float> nearest(n + 1, 77);
  DequantizeRow(format.dtype, row.bytes().data() + 1, n, exact.data());
  DequantizeRow(format.dtype, row.bytes().data() + 1, n, nearest.data());
  for (int64_t i = 0; i < n; ++i) {
    const double expected =
        ValueOf(format, blocks[i / format.num_values], static_cast<int>(i % format.num_values));
    ASSERT_EQ(exact[i], expected) << DTypeName(format.dtype) << " value " << i << " of " << what;
    ASSERT_EQ(nearest[i], static_cast<float>(expected))
        << DTypeName(format.dtype) << " value " << i << " of " << what;
  }
  EXPECT_EQ(exact[n], 77) << "wrote past the end";
  EXPECT_EQ(nearest[n], 77) << "wrote past the end";
}

TEST(DequantizeRowTest, KnowsEveryCodeAndEveryScaleAtEveryPlace) {
  for (const Format& format : Formats()) {
    const int num_codes = 1 << format.code_bits;
    const int num_scales = 1 << format.scale_bits;
    std::vector<Fields> blocks;
    for (int turn = 0; turn < 256; ++turn) {
      Fields f = {.d = 0x3c00, .dmin = 0x3555};  // 1 and 0.333251953125
      for (int s = 0; s < format.num_subs; ++s) {
        f.scales.push_back((turn + 7 * s) % num_scales);
        f.mins.push_back((3 * turn + 5 * s + 1) % num_scales);
      }
      for (int i = 0; i < format.num_values; ++i) f.codes.push_back((turn + i) % num_codes);
      blocks.push_back(f);
    }
    ExpectDequantizes(format, blocks, "all codes");
  }
}

TEST(DequantizeRowTest, KnowsEveryFiniteHalfAsScale) {
  for (const Format& format : Formats()) {
    Rng rng(1);
    std::vector<Fields> blocks;
    for (int bits = 0; bits < 65536; bits += format.num_values == 32 ? 1 : 17) {
      if ((bits & 0x7c00) == 0x7c00) continue;
      const int dmin = ((bits ^ 0x0415) & 0x7c00) == 0x7c00 ? 0 : bits ^ 0x0415;
      blocks.push_back(
          RandomFields(rng, format, static_cast<uint16_t>(bits), static_cast<uint16_t>(dmin)));
    }
    ExpectDequantizes(format, blocks, "all halves");
  }
}

TEST(DequantizeRowTest, ReadsABlockWrittenInBytes) {
  // Q4_K: d = 2, dmin = 0.5. Sub-block 0: scale 0x21 = 33, min 3. Sub-block 4: scale 0b10'0111 = 39
  // (upper bits of byte 0), min 0b01'1010 = 26 (upper bits of byte 4). All other scales 0.
  uint8_t block[144] = {0x00, 0x40, 0x00, 0x38, 0x80 | 0x21, 0, 0, 0, 0x40 | 3, 0, 0, 0, 0xa7};
  block[16] = 0xf5;       // value 0: code 5; value 32: code 15
  block[16 + 64] = 0x0c;  // value 128 (sub-block 4): code 12
  float out[256];
  DequantizeRow(DType::kQ4_K, reinterpret_cast<const std::byte*>(block), 256, out);
  EXPECT_EQ(out[0], 2 * 33 * 5 - 0.5f * 3);
  EXPECT_EQ(out[1], -0.5f * 3);
  EXPECT_EQ(out[32], 0);
  EXPECT_EQ(out[128], 2 * 39 * 12 - 0.5f * 26);
  EXPECT_EQ(out[159], -0.5f * 26);
  EXPECT_EQ(out[160], 0);
}

TEST(DequantizeRowTest, ConvertsThePlainTypes) {
  const float f32[] = {1.5f, -0x1p-149f};
  const uint16_t f16[] = {0x3c01, 0x8001};
  const uint16_t bf16[] = {0x3f81, 0xff80};
  const uint8_t f8[] = {0x39, 0xfe};
  double out[2];
  DequantizeRow(DType::kF32, reinterpret_cast<const std::byte*>(f32), 2, out);
  EXPECT_THAT(out, ElementsAre(1.5, -0x1p-149));
  DequantizeRow(DType::kF16, reinterpret_cast<const std::byte*>(f16), 2, out);
  EXPECT_THAT(out, ElementsAre(1 + 0x1p-10, -0x1p-24));
  DequantizeRow(DType::kBF16, reinterpret_cast<const std::byte*>(bf16), 2, out);
  EXPECT_THAT(out, ElementsAre(1 + 0x1p-7, -std::numeric_limits<double>::infinity()));
  DequantizeRow(DType::kF8E4M3, reinterpret_cast<const std::byte*>(f8), 2, out);
  EXPECT_THAT(out, ElementsAre(1.125, -448));
  float nearest[2];
  DequantizeRow(DType::kF8E4M3, reinterpret_cast<const std::byte*>(f8), 2, nearest);
  EXPECT_THAT(nearest, ElementsAre(1.125f, -448.0f));
}

TEST(ReferenceBackendTest, MultipliesBlockFormatsExactly) {
  for (const Format& format : Formats()) {
    Rng rng(2);
    const int64_t rows = 3, cols = 512, num_rows = 2;
    BitWriter bytes;
    std::vector<double> weights;
    for (int64_t first = 0; first < rows * cols; first += format.num_values) {
      // d and dmin are 0.5 and 0.25, so that all values are quarters.
      const Fields f = RandomFields(rng, format, 0x3800, 0x3400);
      format.write(f, bytes);
      for (int i = 0; i < format.num_values; ++i) weights.push_back(ValueOf(format, f, i));
    }
    const Matrix w = {
        .data = bytes.bytes().data(), .dtype = format.dtype, .rows = rows, .cols = cols};
    std::vector<float> x(num_rows * cols);
    for (float& value : x) value = static_cast<float>(RandomInt(rng, -8, 8));
    std::vector<float> out(num_rows * rows);
    MakeReferenceBackend()->MatMul(w, x.data(), num_rows, out.data());
    for (int64_t t = 0; t < num_rows; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        double expected = 0;
        for (int64_t c = 0; c < cols; ++c) expected += x[t * cols + c] * weights[r * cols + c];
        EXPECT_EQ(out[t * rows + r], static_cast<float>(expected)) << DTypeName(format.dtype);
      }
    }
    const std::vector<int32_t> ids = {2, 0};
    std::vector<float> embedded(2 * cols);
    MakeReferenceBackend()->Embed(w, ids, embedded.data());
    for (int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(embedded[c], static_cast<float>(weights[2 * cols + c])) << DTypeName(format.dtype);
      EXPECT_EQ(embedded[cols + c], static_cast<float>(weights[c])) << DTypeName(format.dtype);
    }
  }
}

}  // namespace
}  // namespace caravan
