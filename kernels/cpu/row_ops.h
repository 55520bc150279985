#ifndef CARAVAN_KERNELS_CPU_ROW_OPS_H_
#define CARAVAN_KERNELS_CPU_ROW_OPS_H_

// The inner loops of the CPU backend: one table of functions for each instruction set. All are pure
// functions of what they are given; pointers need no alignment.
//
// Order of sums: a dot product or sum of squares of n terms goes to 8 lanes (term i to lane i % 8,
// ascending), which are then added in one fixed tree. So a result depends on its own n terms and on
// nothing else: not on how many rows stand beside it in a call. The instruction sets differ from
// each other in the last bits only (AVX2 fuses multiply and add).

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

enum class CpuIsa {
  kAuto,      // the best that this CPU has
  kPortable,  // plain C++
  kAvx2,      // AVX2, FMA and F16C: x86 since 2013
  kAvx512,    // and AVX-512 F, BW, DQ, VL and VNNI: Intel's since 2019, AMD's since 2022
};

struct RowOps {
  CpuIsa isa;
  absl::string_view name;

  // dst[i] = value of src[i] * scale, src as its dtype's bytes. One rounding at most (Q8_0: two, n
  // in whole blocks).
  using Decode = void (*)(const void* src, int64_t n, float scale, float* dst);
  Decode decode_f32;
  Decode decode_f16;
  Decode decode_bf16;
  Decode decode_f8e4m3;
  Decode decode_q8_0;

  // out[i * out_stride + j] += x[i] . w[j] over n values, for i < num_x, j < num_w.
  void (*dots)(const float* const* w, int64_t num_w, const float* const* x, int64_t num_x,
               int64_t n, float* out, int64_t out_stride);

  // out[i * out_stride + c] += sum over j of weights[i * weights_stride + j] * rows[j][c], one
  // addition after another in ascending j, for i < num_out, j < num_rows, c < n. The fastest of
  // these functions where num_out and n are large.
  using WeightedSums = void (*)(const float* weights, int64_t weights_stride,
                                const float* const* rows, int64_t num_rows, int64_t n, float* out,
                                int64_t out_stride, int64_t num_out);
  WeightedSums weighted_sums;

  float (*sum_squares)(const float* x, int64_t n);

  // out[i] = x[i] * scale * weight[i]. out may be x.
  void (*scale_by)(const float* x, float scale, const float* weight, int64_t n, float* out);

  // y[i] += a * x[i].
  void (*axpy)(float a, const float* x, int64_t n, float* y);

  // y[i] *= a.
  void (*scale)(float a, int64_t n, float* y);

  // The largest; -infinity of nothing. NaNs do not count.
  float (*max)(const float* x, int64_t n);

  // x[i] = e^(x[i] * scale - max), and returns their sum, in the order of sum_squares. Off by less
  // than 2 units in the last place; below 2^-125: 0; of NaN: NaN.
  // REQUIRES: no x[i] * scale > max.
  float (*exp_of_differences)(float scale, float max, int64_t n, float* x);

  // out[c * out_stride + r] = rows[r][c] for r < num_rows, c < n.
  void (*transpose)(const float* const* rows, int64_t num_rows, int64_t n, float* out,
                    int64_t out_stride);
};

/// What the tables' exponentials share (row_ops_portable.cc).
struct ExpConstants {
  static constexpr int kCoefficients = 8;

  float smallest = -86.6f;  // about 125 ln 2
  float log2_e = 1.44269504f;
  float rounder = 0x1.8p23f;  // adding and taking it away rounds to the nearest integer
  // ln 2 in two parts, the first so short that its products with n are exact.
  float ln2_high = 0.693359375f;
  float ln2_low = -2.12194440e-4f;
  // 1 / 7!, 1 / 6!, ... 1 / 0!.
  float coefficients[kCoefficients] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                       1.0f / 6,    1.0f / 2,   1.0f,       1.0f};
};
inline constexpr ExpConstants kExp;

/// The table for `isa`; lives forever.
/// Errors: FailedPrecondition - this CPU, or this build, lacks it.
absl::StatusOr<const RowOps*> RowOpsFor(CpuIsa isa);

/// One table for each instruction set; AVX-512 takes that of AVX2 under its own name, but for
/// weighted_sums, which give the same bits too. Null where the build has none.
const RowOps& PortableRowOps();
const RowOps* Avx2RowOps();
RowOps::WeightedSums Avx512WeightedSums();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_ROW_OPS_H_
