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
  // addition after another in ascending j, for i < num_out, j < num_rows, c < n.
  void (*weighted_sums)(const float* weights, int64_t weights_stride, const float* const* rows,
                        int64_t num_rows, int64_t n, float* out, int64_t out_stride,
                        int64_t num_out);

  float (*sum_squares)(const float* x, int64_t n);

  // out[i] = x[i] * scale * weight[i]. out may be x.
  void (*scale_by)(const float* x, float scale, const float* weight, int64_t n, float* out);

  // y[i] += a * x[i].
  void (*axpy)(float a, const float* x, int64_t n, float* y);

  // y[i] *= a.
  void (*scale)(float a, int64_t n, float* y);
};

/// The table for `isa`; lives forever.
/// Errors: FailedPrecondition - this CPU, or this build, lacks it.
absl::StatusOr<const RowOps*> RowOpsFor(CpuIsa isa);

/// One table for each instruction set; AVX-512 takes that of AVX2 under its own name, so the two
/// give the same bits. Null where the build has none.
const RowOps& PortableRowOps();
const RowOps* Avx2RowOps();

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_ROW_OPS_H_
