#include "kernels/quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "kernels/quant/blocks.h"
#include "kernels/quant/sub_block_fit.h"

namespace caravan {
namespace {

/// Larger than what any block format holds (65504 * 128 * 32), small enough for sums of squares.
constexpr float kLargest = 0x1p28f;

/// Where the fit of a sub-block starts and how long it alternates. In formats with minima a start
/// is the share of the sub-block's range that the codes span; else the code, unrounded, that the
/// value of largest magnitude gets. Longer lists gain less than 2% of the error and cost in
/// proportion.
struct Search {
  absl::Span<const float> starts;
  int fit_rounds;    // of a sub-block's codes and its own scale and min
  int block_rounds;  // of all codes and what is stored
};

Search SearchFor(DType dtype) {
  static constexpr float kQ8_0[] = {127, -128, 126};
  static constexpr float kQ4_0[] = {-8, 7.5f, -8.7f};
  static constexpr float kQ6_K[] = {-32, 31, -33, -31, -30};
  static constexpr float kQ5_K[] = {1, 0.97f, 0.94f};
  static constexpr float kQ4_K[] = {1, 0.95f, 0.9f};
  static constexpr float kQ3_K[] = {-4, 3, -5, 4};
  static constexpr float kQ2_K[] = {1, 0.8f, 0.6f};
  switch (dtype) {
    case DType::kQ8_0:
      return {kQ8_0, 0, 1};
    case DType::kQ4_0:
      return {kQ4_0, 0, 1};
    case DType::kQ6_K:
      return {kQ6_K, 0, 1};
    case DType::kQ5_K:
      return {kQ5_K, 1, 1};
    case DType::kQ4_K:
      return {kQ4_K, 1, 1};
    case DType::kQ3_K:
      return {kQ3_K, 1, 1};
    default:
      return {kQ2_K, 1, 2};
  }
}

float NearestHalf(float value) { return Float16ToFloat(FloatToFloat16(SaturateToFloat16(value))); }

template <typename Block>
class BlockQuantizer {
 public:
  /// x and w [Block::kValues]; w: non-negative, not all 0 in any sub-block.
  Block Quantize(const float* x, const float* w) {
    x_ = x;
    w_ = w;
    Solution* best = &solutions_[0];
    Solution* other = &solutions_[1];
    SetNaive(*best);
    const Search search = SearchFor(Block::kDType);
    Residuals fits[kSubs];
    for (int s = 0; s < kSubs; ++s) fits[s] = FitSubBlock(s, search);
    SetDByLargest(fits, *other);
    ChooseSubs(fits, *other);
    for (int round = 0;; ++round) {
      RoundAll(*other);
      if (!(other->error < best->error)) break;
      std::swap(best, other);
      if (round == search.block_rounds) break;
      SolveD(*best, *other);
      ChooseSubs(best->residuals, *other);
    }
    return Packed(*best);
  }

 private:
  static constexpr int kSubValues = Block::kSubValues;
  static constexpr int kSubs = Block::kValues / kSubValues;

  struct Solution {
    float d = 0;  // a binary16's value, as dmin
    float dmin = 0;
    SubScale subs[kSubs];
    Residuals residuals[kSubs];
    float codes[Block::kValues];
    double error = 0;
  };

  struct Range {
    float min;
    float max;

    /// The one of larger magnitude.
    float Extreme() const { return max > -min ? max : min; }
  };

  Range RangeOf(int s) const {
    const float* x = x_ + s * kSubValues;
    Range range = {x[0], x[0]};
    for (int i = 1; i < kSubValues; ++i) {
      range.min = std::min(range.min, x[i]);
      range.max = std::max(range.max, x[i]);
    }
    return range;
  }

  /// A start, see Search.
  static SubBlockFit FitFromRange(Range range, float start) {
    if constexpr (Block::kHasMin) {
      range.min = std::min(range.min, 0.0f);
      const float margin = (range.max - range.min) * (1 - start) / 2;
      const float m = std::max(-range.min - margin, 0.0f);
      return {std::max((range.max - margin + m) / Block::kMaxCode, 0.0f), m};
    } else {
      return {range.Extreme() / start, 0};
    }
  }

  Residuals FitSubBlock(int s, const Search& search) const {
    const float* x = x_ + s * kSubValues;
    const float* w = w_ + s * kSubValues;
    const Range range = RangeOf(s);
    float codes[kSubValues];
    float best_error = INFINITY;
    SubBlockFit best;
    for (const float start : search.starts) {
      const Residuals e = Round(x, w, FitFromRange(range, start), codes);
      const SubBlockFit fit = BestFit(e, Block::kHasMin);
      const float error = e.ErrorAt(fit.s - e.s, fit.m - e.m);
      if (error < best_error) {
        best_error = error;
        best = fit;
      }
    }
    Residuals e = Round(x, w, best, codes);
    for (int round = 0; round < search.fit_rounds; ++round) {
      e = Round(x, w, BestFit(e, Block::kHasMin), codes);
    }
    return e;
  }

  static Residuals Round(const float* x, const float* w, SubBlockFit fit, float* codes) {
    return RoundCodes<kSubValues, Block::kMinCode, Block::kMaxCode>(x, w, fit, codes);
  }

  /// d and dmin such that the largest scale and min get the largest integers.
  template <typename Fit>
  static void SetDByLargest(const Fit* fits, Solution& solution) {
    float largest_s = 0, largest_m = 0;
    for (int s = 0; s < kSubs; ++s) {
      if (std::abs(fits[s].s) > std::abs(largest_s)) largest_s = fits[s].s;
      largest_m = std::max(largest_m, fits[s].m);
    }
    solution.d =
        NearestHalf(largest_s / (Block::kMinScale < 0 ? Block::kMinScale : Block::kMaxScale));
    solution.dmin = NearestHalf(largest_m / Block::kMaxScale);
  }

  /// What the format's definition suggests: the range of each sub-block, the largest scale.
  void SetNaive(Solution& solution) const {
    SubBlockFit fits[kSubs];
    for (int s = 0; s < kSubs; ++s) fits[s] = FitFromRange(RangeOf(s), kNaiveStart);
    SetDByLargest(fits, solution);
    for (int s = 0; s < kSubs; ++s) {
      solution.subs[s] = {NearestInteger(fits[s].s, solution.d),
                          Block::kHasMin ? NearestInteger(fits[s].m, solution.dmin) : 0};
    }
    RoundAll(solution);
  }

  static constexpr float kNaiveStart = Block::kHasMin            ? 1
                                       : Block::kMinCode == -128 ? 127
                                                                 : Block::kMinCode;

  static int NearestInteger(float value, float unit) {
    if (Block::kMinScale == Block::kMaxScale) return Block::kMaxScale;
    if (unit == 0) return 0;
    return static_cast<int>(
        std::lrint(std::clamp<float>(value / unit, Block::kMinScale, Block::kMaxScale)));
  }

  /// The integers for d and dmin that have the least error with the codes as they are.
  static SubScale ChooseSub(const Residuals& e, float d, float dmin) {
    if (Block::kMinScale == Block::kMaxScale) return {};
    SubScale best;
    const float s = BestFit(e, Block::kHasMin).s;
    const float ratio = d != 0 ? std::clamp<float>(s / d, Block::kMinScale, Block::kMaxScale) : 0;
    const int floor = std::min(static_cast<int>(std::floor(ratio)), Block::kMaxScale - 1);
    float best_error = INFINITY;
    for (int scale = floor; scale <= floor + 1; ++scale) {
      const float ds = d * static_cast<float>(scale) - e.s;
      SubScale sub = {scale, 0};
      float dm = 0;
      if constexpr (Block::kHasMin) {
        sub.min = NearestInteger(e.m + (ds * e.q - e.r) / e.w, dmin);
        dm = dmin * static_cast<float>(sub.min) - e.m;
      }
      const float error = e.ErrorAt(ds, dm);
      if (error < best_error) {
        best_error = error;
        best = sub;
      }
    }
    return best;
  }

  static void ChooseSubs(const Residuals* residuals, Solution& solution) {
    for (int s = 0; s < kSubs; ++s) {
      solution.subs[s] = ChooseSub(residuals[s], solution.d, solution.dmin);
    }
  }

  /// The best d and dmin for the codes and integers of `from`, rounded to halves.
  static void SolveD(const Solution& from, Solution& to) {
    // The residuals become r - scale dd q + min ddmin.
    double aa = 0, ab = 0, bb = 0, ra = 0, rb = 0;
    for (int s = 0; s < kSubs; ++s) {
      const Residuals& e = from.residuals[s];
      const double scale = from.subs[s].scale;
      const double min = from.subs[s].min;
      aa += scale * scale * e.qq;
      ab += scale * min * e.q;
      bb += min * min * e.w;
      ra += scale * e.rq;
      rb -= min * e.r;
    }
    const double determinant = aa * bb - ab * ab;
    double dd = 0, ddmin = 0;
    if (determinant > 1e-9 * aa * bb) {
      dd = (ra * bb + rb * ab) / determinant;
      ddmin = (rb * aa + ra * ab) / determinant;
    } else if (aa > 0) {
      dd = ra / aa;
    } else if (bb > 0) {
      ddmin = rb / bb;
    }
    to.d = NearestHalf(from.d + static_cast<float>(dd));
    to.dmin = NearestHalf(from.dmin + static_cast<float>(ddmin));
  }

  void RoundAll(Solution& solution) const {
    solution.error = 0;
    for (int s = 0; s < kSubs; ++s) {
      const SubBlockFit fit = {solution.d * static_cast<float>(solution.subs[s].scale),
                               solution.dmin * static_cast<float>(solution.subs[s].min)};
      solution.residuals[s] =
          Round(x_ + s * kSubValues, w_ + s * kSubValues, fit, solution.codes + s * kSubValues);
      solution.error += static_cast<double>(solution.residuals[s].rr);
    }
  }

  static Block Packed(const Solution& solution) {
    Block block = {};
    block.d.SetBits(FloatToFloat16(solution.d));
    if constexpr (Block::kHasMin) block.dmin.SetBits(FloatToFloat16(solution.dmin));
    for (int s = 0; s < kSubs; ++s) block.SetSub(s, solution.subs[s]);
    for (int i = 0; i < Block::kValues; ++i) block.SetCode(i, static_cast<int>(solution.codes[i]));
    return block;
  }

  const float* x_ = nullptr;
  const float* w_ = nullptr;
  Solution solutions_[2];
};

/// Weights with a maximum of 1; equal ones where none is given, or in a sub-block that has only
/// zeros.
void SetWeights(const float* importance, int n, int sub_values, float* w) {
  std::fill_n(w, n, 1.0f);
  if (importance == nullptr) return;
  const float max = *std::max_element(importance, importance + n);
  if (max < std::numeric_limits<float>::min()) return;
  for (int first = 0; first < n; first += sub_values) {
    const float sub_max = *std::max_element(importance + first, importance + first + sub_values);
    // Next to nothing, so that unimportant sub-blocks are fitted too but cost the others nothing.
    const float least = sub_max / max < 0x1p-40f ? 0x1p-40f : 0;
    for (int i = first; i < first + sub_values; ++i) w[i] = std::max(importance[i] / max, least);
  }
}

template <typename Block>
void QuantizeBlocks(const float* row, int64_t n, const float* importance, std::byte* out) {
  BlockQuantizer<Block> quantizer;
  float x[Block::kValues];
  float w[Block::kValues];
  for (int64_t first = 0; first < n; first += Block::kValues, out += sizeof(Block)) {
    for (int i = 0; i < Block::kValues; ++i) x[i] = std::clamp(row[first + i], -kLargest, kLargest);
    if (first == 0 || importance != nullptr) {
      SetWeights(importance == nullptr ? nullptr : importance + first, Block::kValues,
                 Block::kSubValues, w);
    }
    const Block block = quantizer.Quantize(x, w);
    std::memcpy(out, &block, sizeof(block));
  }
}

/// The first i in [0, n) whose value is not finite or, where `signed_values` is false, negative; n:
/// none.
int64_t FirstBad(const float* values, int64_t n, bool signed_values) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(std::abs(values[i]) < INFINITY) || (!signed_values && values[i] < 0)) return i;
  }
  return n;
}

}  // namespace

absl::Status QuantizeRow(DType dtype, const float* row, int64_t n, const float* importance,
                         std::byte* out) {
  CARAVAN_CHECK(n % BlockOf(dtype).values == 0);
  if (const int64_t i = FirstBad(row, n, true); i < n) {
    return absl::InvalidArgumentError(absl::StrCat("value ", i, " is ", row[i], ", not finite"));
  }
  if (importance != nullptr) {
    if (const int64_t i = FirstBad(importance, n, false); i < n) {
      return absl::InvalidArgumentError(
          absl::StrCat("importance ", i, " is ", importance[i], ", not finite or negative"));
    }
  }
  const bool is_block = VisitBlock(dtype, [&]<typename Block>(BlockTag<Block>) {
    QuantizeBlocks<Block>(row, n, importance, out);
  });
  CARAVAN_CHECK(is_block && "not a block format");
  return absl::OkStatus();
}

}  // namespace caravan
