#include "model/synth/random_tensor.h"

#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/quant/blocks.h"

namespace caravan {
namespace {

/// Word `counter` of the stream that `key` names.
uint64_t Word(uint64_t key, uint64_t counter) {
  uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A uniform 16-bit integer has the variance (2^32 - 1) / 12.
constexpr double kSumVariance = 4 * (0x1p32 - 1) / 12;
constexpr int64_t kTwiceSumMean = 4 * 65535;

/// Of mean 0 and variance 4 kSumVariance: twice the sum of four 16-bit integers, centred.
int64_t DrawSum(uint64_t word) {
  const uint64_t pairs = (word & 0x0000ffff0000ffffu) + (word >> 16 & 0x0000ffff0000ffffu);
  return 2 * static_cast<int64_t>((pairs & 0xffffffffu) + (pairs >> 32)) - kTwiceSumMean;
}

// Scales of sub-blocks are 8 to 15, which every format holds: enough bits for d at small standard
// deviations, and no two sub-blocks need be alike.
constexpr int kLeastScale = 8;
constexpr int kScaleBits = 3;

/// The mean of scale^2 * (code - centre)^2.
template <typename Block>
double UnitVariance() {
  double scale_square = 0;
  for (int scale = kLeastScale; scale < 2 * kLeastScale; ++scale) {
    scale_square += static_cast<double>(scale * scale) / (1 << kScaleBits);
  }
  if (Block::kMinScale == Block::kMaxScale) scale_square = 1;
  const double codes = Block::kMaxCode - Block::kMinCode + 1;
  // Without a min the codes are off centre by a half; then the scale's sign is random.
  return scale_square * ((codes * codes - 1) / 12 + (Block::kHasMin ? 0 : 0.25));
}

template <typename Block>
void FillBlock(uint64_t key, uint64_t index, uint16_t d, uint16_t dmin, std::byte* out) {
  constexpr uint64_t kWords = (sizeof(Block) + 7) / 8;
  constexpr int kSubs = Block::kValues / Block::kSubValues;
  static_assert(kSubs * (kScaleBits + 1) <= 64);
  uint64_t words[kWords];
  for (uint64_t i = 0; i < kWords; ++i) words[i] = Word(key, index * (kWords + 1) + i);
  uint64_t bits = Word(key, index * (kWords + 1) + kWords);
  Block block;
  std::memcpy(&block, words, sizeof(block));  // every code uniform
  if constexpr (Block::kMinScale == Block::kMaxScale) {
    block.d.SetBits(static_cast<uint16_t>(d | (bits & 1) << 15));
  } else {
    block.d.SetBits(d);
    std::memset(&block.scales, 0, sizeof(block.scales));
    for (int s = 0; s < kSubs; ++s, bits >>= kScaleBits + 1) {
      int scale = kLeastScale + static_cast<int>(bits & (kLeastScale - 1));
      if (Block::kHasMin) {
        block.SetSub(s, {scale, scale});
      } else {
        if ((bits >> kScaleBits & 1) != 0) scale = -scale;
        block.SetSub(s, {scale, 0});
      }
    }
    if constexpr (Block::kHasMin) block.dmin.SetBits(dmin);
  }
  std::memcpy(out, &block, sizeof(block));
}

}  // namespace

RandomTensor::RandomTensor(DType dtype, uint64_t key, float mean, float stddev)
    : dtype_(dtype), key_(key), mean_(mean) {
  CARAVAN_CHECK(dtype != DType::kI32);
  scale_ = static_cast<float>(static_cast<double>(stddev) / std::sqrt(4 * kSumVariance));
  VisitBlock(dtype, [&]<typename Block>(BlockTag<Block>) {
    CARAVAN_CHECK(mean == 0);
    d_ = FloatToFloat16(
        static_cast<float>(static_cast<double>(stddev) / std::sqrt(UnitVariance<Block>())));
    if (!Block::kHasMin) return;
    // dmin is the centre of the codes times d, exactly, for a mean of 0: with 6 significant bits of
    // d, and at most 5 of twice the centre, the product is a binary16.
    d_ = static_cast<uint16_t>((d_ + 16) & ~31);
    dmin_ = FloatToFloat16(Float16ToFloat(d_) * (0.5f * Block::kMaxCode));
  });
}

void RandomTensor::Fill(int64_t first, int64_t count, std::byte* out) const {
  const bool is_block = VisitBlock(dtype_, [&]<typename Block>(BlockTag<Block>) {
    for (int64_t i = 0; i < count; ++i, out += sizeof(Block)) {
      FillBlock<Block>(key_, static_cast<uint64_t>(first + i), d_, dmin_, out);
    }
  });
  if (is_block) return;
  const auto fill = [&](auto convert) {
    for (int64_t i = 0; i < count; ++i) {
      // The product is exact in double (18 and 24 bits), so that it does not matter whether the
      // compiler fuses it with the sum.
      const double sum = static_cast<double>(DrawSum(Word(key_, static_cast<uint64_t>(first + i))));
      const float value = static_cast<float>(static_cast<double>(mean_) + sum * scale_);
      const auto bits = convert(value);
      std::memcpy(out + i * static_cast<int64_t>(sizeof(bits)), &bits, sizeof(bits));
    }
  };
  switch (dtype_) {
    case DType::kF32:
      return fill([](float value) { return value; });
    case DType::kF16:
      return fill([](float value) { return FloatToFloat16(value); });
    case DType::kBF16:
      return fill([](float value) { return FloatToBFloat16(value); });
    default:
      return fill([](float value) { return FloatToFloat8E4M3(value); });
  }
}

}  // namespace caravan
