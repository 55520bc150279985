// The one function of RowOps that AVX-512 has of its own. Compiled with it switched on: see
// row_ops_avx2.cc on inline functions.

#include "kernels/cpu/row_ops.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <immintrin.h>

#include "kernels/cpu/row_sums.h"

namespace caravan {
namespace {

struct Avx512 {
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kOuts = 6;
  static constexpr int64_t kVectors = 4;  // 24 sums, 4 + 1 operands, 32 registers
  using Floats = __m512;

  static Floats Load(const float* src) { return _mm512_loadu_ps(src); }
  static void Store(float* dst, Floats v) { _mm512_storeu_ps(dst, v); }
  static Floats Fill(float value) { return _mm512_set1_ps(value); }
  static Floats FusedMultiplyAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static __mmask16 First(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Floats LoadFirst(const float* src, int64_t count) {
    return _mm512_maskz_loadu_ps(First(count), src);
  }
  static void StoreFirst(float* dst, int64_t count, Floats v) {
    _mm512_mask_storeu_ps(dst, First(count), v);
  }
};

}  // namespace

RowOps::WeightedSums Avx512WeightedSums() { return WeightedSums<Avx512>; }

}  // namespace caravan

#else

namespace caravan {

RowOps::WeightedSums Avx512WeightedSums() { return nullptr; }

}  // namespace caravan

#endif
