#ifndef CARAVAN_KERNELS_QUANT_SUB_BLOCK_FIT_H_
#define CARAVAN_KERNELS_QUANT_SUB_BLOCK_FIT_H_

// Least squares for one sub-block: values x, weights w, and integer codes q in a given range that
// stand for s q - m. Once the codes are rounded for some (s, m), the best (s, m) for those codes is
// the solution of a linear problem of one or two unknowns; rounding for that again cannot be worse.

#include <algorithm>
#include <cmath>
#include <cstring>

namespace caravan {

/// What the quantizer knows of the error sum w (x - (s q - m))^2 near the (s, m) that the codes
/// were rounded for. All sums are weighted, and r = x - (s q - m) is the residual, so that nothing
/// cancels where the fit is good.
struct Residuals {
  float s = 0;
  float m = 0;
  float rr = 0;  // the error itself
  float rq = 0;
  float qq = 0;
  float r = 0;
  float q = 0;
  float w = 0;

  /// The error of the same codes with (s + ds, m + dm).
  float ErrorAt(float ds, float dm) const {
    return rr + ds * (ds * qq - 2 * rq) + dm * (dm * w + 2 * r - 2 * ds * q);
  }
};

/// s q - m.
struct SubBlockFit {
  float s = 0;
  float m = 0;
};

/// The (s, m) that has the least error with these codes: m = 0 where `has_min` is false, else s and
/// m are not negative.
inline SubBlockFit BestFit(const Residuals& e, bool has_min) {
  if (has_min) {
    // With the mean residual taken out: ds = cov(r, q) / var(q).
    const float var = e.qq - e.q * e.q / e.w;
    const float ds = var > 0x1p-20f * e.qq ? (e.rq - e.r * e.q / e.w) / var : 0;
    const float m = e.m - (e.r - ds * e.q) / e.w;
    if (m >= 0) return {e.s + ds, m};
  }
  // m goes to 0: r becomes r - e.m.
  const float s = e.qq > 0 ? e.s + (e.rq - e.m * e.q) / e.qq : e.s;
  return {has_min ? std::max(s, 0.0f) : s, 0};
}

// Four sums side by side, added in the same order on every machine.
using Float4 = float __attribute__((vector_size(16)));

/// Rounds: q[i] = the code in [kMinCode, kMaxCode] nearest to (x[i] + m) / s. x, w, q [kCount], q
/// as floats, kCount a multiple of 4. |x[i]| <= 2^28, w[i] in [0, 1].
template <int kCount, int kMinCode, int kMaxCode>
Residuals RoundCodes(const float* x, const float* w, SubBlockFit fit, float* q) {
  const Float4 low = Float4{} + static_cast<float>(kMinCode);
  const Float4 high = Float4{} + static_cast<float>(kMaxCode);
  constexpr float kRound = 0x1.8p23f;  // adding and taking it away rounds to the nearest integer
  const float inverse = std::abs(fit.s) >= 0x1p-60f ? 1 / fit.s : 0;
  Float4 rr = {}, rq = {}, qq = {}, r_sum = {}, q_sum = {}, w_sum = {};
  for (int i = 0; i < kCount; i += 4) {
    Float4 target, weight;
    std::memcpy(&target, x + i, sizeof(target));
    std::memcpy(&weight, w + i, sizeof(weight));
    target += fit.m;
    Float4 code = target * inverse;
    code = code < low ? low : code;
    code = code > high ? high : code;
    code = (code + kRound) - kRound;
    std::memcpy(q + i, &code, sizeof(code));
    const Float4 r = target - code * fit.s;
    const Float4 wr = weight * r;
    const Float4 wq = weight * code;
    rr += wr * r;
    rq += wr * code;
    qq += wq * code;
    r_sum += wr;
    q_sum += wq;
    w_sum += weight;
  }
  const auto sum = [](Float4 v) { return (v[0] + v[1]) + (v[2] + v[3]); };
  return {.s = fit.s,
          .m = fit.m,
          .rr = sum(rr),
          .rq = sum(rq),
          .qq = sum(qq),
          .r = sum(r_sum),
          .q = sum(q_sum),
          .w = sum(w_sum)};
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_QUANT_SUB_BLOCK_FIT_H_
