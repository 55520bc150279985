#ifndef CARAVAN_KERNELS_CPU_ROW_SUMS_H_
#define CARAVAN_KERNELS_CPU_ROW_SUMS_H_

// RowOps::weighted_sums as a register-blocked product, once for each vector type. A value of `out`
// is one chain of fused multiply-adds in ascending order of rows, whatever the blocking: so every
// vector type that fuses gives the same bits.
//
// V is a type of an anonymous namespace (see row_ops_avx2.cc on inline functions):
//   kLanes; kOuts and kVectors, the block that fills its registers; Floats; Load, Store, Fill,
//   FusedMultiplyAdd(a, b, c) = a b + c; LoadFirst and StoreFirst, of fewer than kLanes values.

#include <cstdint>

namespace caravan {

/// kOut rows of out and kVectors * V::kLanes of their columns, from `column` on.
template <typename V, int64_t kOut, int64_t kVectors>
inline void SumBlock(const float* weights, int64_t weights_stride, const float* const* rows,
                     int64_t num_rows, int64_t column, float* out, int64_t out_stride) {
  typename V::Floats sums[kOut][kVectors];
  for (int64_t i = 0; i < kOut; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      sums[i][v] = V::Load(out + i * out_stride + column + v * V::kLanes);
    }
  }
  for (int64_t j = 0; j < num_rows; ++j) {
    const float* const row = rows[j] + column;
    typename V::Floats b[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) b[v] = V::Load(row + v * V::kLanes);
    for (int64_t i = 0; i < kOut; ++i) {
      const typename V::Floats a = V::Fill(weights[i * weights_stride + j]);
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[i][v] = V::FusedMultiplyAdd(a, b[v], sums[i][v]);
      }
    }
  }
  for (int64_t i = 0; i < kOut; ++i) {
    for (int64_t v = 0; v < kVectors; ++v) {
      V::Store(out + i * out_stride + column + v * V::kLanes, sums[i][v]);
    }
  }
}

/// As many columns as are fewer than a vector.
template <typename V>
inline void SumTail(const float* weights, int64_t weights_stride, const float* const* rows,
                    int64_t num_rows, int64_t column, int64_t count, float* out, int64_t out_stride,
                    int64_t num_out) {
  for (int64_t i = 0; i < num_out; ++i) {
    typename V::Floats sum = V::LoadFirst(out + i * out_stride + column, count);
    for (int64_t j = 0; j < num_rows; ++j) {
      sum = V::FusedMultiplyAdd(V::Fill(weights[i * weights_stride + j]),
                                V::LoadFirst(rows[j] + column, count), sum);
    }
    V::StoreFirst(out + i * out_stride + column, count, sum);
  }
}

/// kOut rows of out, or a multiple of them, and all columns. Pieces of columns stand outermost, so
/// that what they need of `rows` stays in the first-level cache while every row of out passes.
template <typename V, int64_t kOut, int64_t kVectors>
void SumRows(const float* weights, int64_t weights_stride, const float* const* rows,
             int64_t num_rows, int64_t n, float* out, int64_t out_stride, int64_t num_out) {
  constexpr int64_t kColumns = kVectors * V::kLanes;
  int64_t c = 0;
  for (; c + kColumns <= n; c += kColumns) {
    for (int64_t i = 0; i < num_out; i += kOut) {
      SumBlock<V, kOut, kVectors>(weights + i * weights_stride, weights_stride, rows, num_rows, c,
                                  out + i * out_stride, out_stride);
    }
  }
  for (; c + V::kLanes <= n; c += V::kLanes) {
    for (int64_t i = 0; i < num_out; i += kOut) {
      SumBlock<V, kOut, 1>(weights + i * weights_stride, weights_stride, rows, num_rows, c,
                           out + i * out_stride, out_stride);
    }
  }
  if (c < n) {
    SumTail<V>(weights, weights_stride, rows, num_rows, c, n - c, out, out_stride, num_out);
  }
}

template <typename V>
void WeightedSums(const float* weights, int64_t weights_stride, const float* const* rows,
                  int64_t num_rows, int64_t n, float* out, int64_t out_stride, int64_t num_out) {
  // Rows that are added before the next: 64 columns of them take half a first-level cache.
  constexpr int64_t kRows = 96;
  // The last rows of out, fewer than kOuts, take more columns instead, so that enough additions are
  // under way at once.
  using Sum = void (*)(const float*, int64_t, const float* const*, int64_t, int64_t, float*,
                       int64_t, int64_t);
  static constexpr Sum kSums[] = {
      nullptr,
      SumRows<V, 1, 2 * V::kVectors>,
      SumRows<V, 2, 2 * V::kVectors>,
      SumRows<V, 3, V::kVectors>,
      SumRows<V, 4, V::kVectors>,
      SumRows<V, 5, V::kVectors>,
  };
  static_assert(V::kOuts == 6);
  const int64_t rest = num_out % V::kOuts;
  const int64_t whole = num_out - rest;
  for (int64_t j = 0; j < num_rows; j += kRows) {
    const int64_t count = num_rows - j < kRows ? num_rows - j : kRows;
    SumRows<V, V::kOuts, V::kVectors>(weights + j, weights_stride, rows + j, count, n, out,
                                      out_stride, whole);
    if (rest == 0) continue;
    kSums[rest](weights + whole * weights_stride + j, weights_stride, rows + j, count, n,
                out + whole * out_stride, out_stride, rest);
  }
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_ROW_SUMS_H_
