#ifndef CARAVAN_KERNELS_CUDA_Q8_0_FIT_CUH_
#define CARAVAN_KERNELS_CUDA_Q8_0_FIT_CUH_

// The quantization of 32 values to a Q8_0 block on the device: operation for operation what
// QuantizeRow (kernels/quant/quantize.cc) does for that format with equal weights, so that both
// store the same bits. CUDA is compiled without contraction, as the host's code is.

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

namespace caravan {

struct Q8_0Fit {
  float d;
  uint16_t d_bits;

  /// The code nearest to value / d.
  __device__ int Code(float value) const { return static_cast<int>(Rounded(value, Inverse(d))); }

  __device__ static float Inverse(float d) { return fabsf(d) >= 0x1p-60f ? 1 / d : 0; }
  __device__ static float Rounded(float value, float inverse) {
    constexpr float kRound = 0x1.8p23f;  // adding and taking it away rounds to the nearest integer
    const float code = fminf(fmaxf(Clamped(value) * inverse, -128.0f), 127.0f);
    return (code + kRound) - kRound;
  }
  __device__ static float Clamped(float value) { return fminf(fmaxf(value, -0x1p28f), 0x1p28f); }
};

/// Residuals of sub_block_fit.h, as far as a format without minima and equal weights needs them.
struct Q8_0Residuals {
  float rr = 0;
  float rq = 0;
  float qq = 0;
};

/// Those of the codes for a scale; terms go to four lanes, as the host's do.
__device__ inline Q8_0Residuals Q8_0ResidualsOf(const float* x, float scale) {
  const float inverse = Q8_0Fit::Inverse(scale);
  Q8_0Residuals lanes[4];
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    Q8_0Residuals& lane = lanes[i % 4];
    const float code = Q8_0Fit::Rounded(x[i], inverse);
    const float r = Q8_0Fit::Clamped(x[i]) - code * scale;
    lane.rr += r * r;
    lane.rq += r * code;
    lane.qq += code * code;
  }
  return {(lanes[0].rr + lanes[1].rr) + (lanes[2].rr + lanes[3].rr),
          (lanes[0].rq + lanes[1].rq) + (lanes[2].rq + lanes[3].rq),
          (lanes[0].qq + lanes[1].qq) + (lanes[2].qq + lanes[3].qq)};
}

/// The scale of least error for the codes that were rounded for `scale`.
__device__ inline float BestQ8_0Scale(float scale, const Q8_0Residuals& e) {
  return e.qq > 0 ? scale + e.rq / e.qq : scale;
}

/// Both zeros give +0.
__device__ inline float NearestHalf(float value) {
  if (value == 0) return 0;
  return __half2float(__float2half_rn(fminf(fmaxf(value, -65504.0f), 65504.0f)));
}

/// x [32], all finite.
__device__ inline Q8_0Fit FitQ8_0(const float* x) {
  float min = Q8_0Fit::Clamped(x[0]);
  float max = min;
  for (int i = 1; i < 32; ++i) {
    const float value = Q8_0Fit::Clamped(x[i]);
    min = value < min ? value : min;
    max = max < value ? value : max;
  }
  const float extreme = max > -min ? max : min;

  // Plain quantization, then what the best of three starts leads to, if it is better.
  float best = NearestHalf(extreme / 127);
  float best_error = Q8_0ResidualsOf(x, best).rr;
  float start_error = INFINITY;
  float start = 0;
  for (const float code : {127.0f, -128.0f, 126.0f}) {
    const float scale = extreme / code;
    const Q8_0Residuals e = Q8_0ResidualsOf(x, scale);
    const float fitted = BestQ8_0Scale(scale, e);
    const float ds = fitted - scale;
    const float error = e.rr + ds * (ds * e.qq - 2 * e.rq);
    if (error < start_error) {
      start_error = error;
      start = fitted;
    }
  }
  float tried = NearestHalf(start);
  for (int round = 0; round < 2; ++round) {
    const Q8_0Residuals e = Q8_0ResidualsOf(x, tried);
    if (!(e.rr < best_error)) break;
    best = tried;
    best_error = e.rr;
    if (e.qq > 0) {
      const double ds = static_cast<double>(e.rq) / static_cast<double>(e.qq);
      tried = NearestHalf(best + static_cast<float>(ds));
    }
  }
  return {best, __half_as_ushort(__float2half_rn(best))};
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_Q8_0_FIT_CUH_
