#ifndef CARAVAN_TESTS_KERNELS_KERNEL_TESTING_H_
#define CARAVAN_TESTS_KERNELS_KERNEL_TESTING_H_

// What the kernel tests share: random matrices whose exact values are known, the CPU's backends,
// and products with their error bounds.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/tile_ops.h"
#include "kernels/quant/dequantize.h"
#include "kernels/reference/reference_backend.h"
#include "kernels/tiled/tile_layout.h"
#include "tests/kernels/tested_backends.h"

namespace caravan {

using Rng = std::mt19937_64;

inline constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3};
inline constexpr DType kBlockTypes[] = {DType::kQ4_0, DType::kQ8_0, DType::kQ2_K, DType::kQ3_K,
                                        DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

/// Half an ulp of 1: the relative error of one float operation.
inline constexpr double kUnit = 0x1p-24;
/// The absolute error of one float operation whose result is subnormal.
inline constexpr double kTiny = 0x1p-150;

inline std::vector<CpuIsa> TestedIsas() {
  std::vector<CpuIsa> isas = {CpuIsa::kPortable};
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (RowOpsFor(isa).ok()) isas.push_back(isa);
  }
  return isas;
}

inline std::unique_ptr<Backend> CpuBackendFor(CpuIsa isa, int num_threads) {
  return *MakeCpuBackend({.num_threads = num_threads, .isa = isa});
}

/// The CPU backend with each instruction set of this machine, on 2 threads.
inline std::vector<NamedBackend> CpuBackends() {
  std::vector<NamedBackend> backends;
  for (const CpuIsa isa : TestedIsas()) {
    std::unique_ptr<Backend> backend = CpuBackendFor(isa, 2);
    std::string name = backend->Name();
    backends.push_back({std::move(name), std::move(backend)});
  }
  return backends;
}

/// Backend::RoutedExperts of experts that are all in memory, by id.
inline void RunResidentExperts(Backend& backend, absl::Span<const FfnWeights> experts,
                               const float* x, int64_t num_rows, const int32_t* expert_ids,
                               const float* weights, int64_t k, float* out) {
  ResidentExperts resident(experts, absl::MakeConstSpan(expert_ids, num_rows * k));
  ASSERT_TRUE(backend.RoutedExperts(resident, x, num_rows, expert_ids, weights, k, out).ok());
}

inline int64_t RandomInt(Rng& rng, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}

inline std::vector<float> RandomFloats(Rng& rng, int64_t count, float limit = 1) {
  std::uniform_real_distribution<float> uniform(-limit, limit);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(rng);
  return values;
}

/// Magnitudes from subnormal to 2^max_exponent.
inline std::vector<float> RandomWideFloats(Rng& rng, int64_t count, int max_exponent) {
  std::vector<float> values = RandomFloats(rng, count);
  for (float& value : values) {
    value = std::ldexp(value, static_cast<int>(RandomInt(rng, -148, max_exponent)));
  }
  return values;
}

inline float DecodeCode(DType dtype, uint32_t code) {
  switch (dtype) {
    case DType::kF16:
      return Float16ToFloat(static_cast<uint16_t>(code));
    case DType::kBF16:
      return BFloat16ToFloat(static_cast<uint16_t>(code));
    case DType::kF8E4M3:
      return Float8E4M3ToFloat(static_cast<uint8_t>(code));
    default:
      return std::bit_cast<float>(code);
  }
}

/// A matrix with its memory, and its exact values.
class TestMatrix {
 public:
  TestMatrix(DType dtype, int64_t rows, int64_t cols)
      : dtype_(dtype), rows_(rows), cols_(cols), values_(rows * cols) {
    bytes_.resize(DTypeBytes(dtype, rows * cols));
  }

  /// Random codes with magnitudes of about 1 (f8: all its finite codes), and random scales for f8.
  static TestMatrix Random(Rng& rng, DType dtype, int64_t rows, int64_t cols) {
    TestMatrix m(dtype, rows, cols);
    if (dtype == DType::kF8E4M3) {
      const std::vector<float> scales = RandomFloats(rng, Fp8Blocks(rows) * Fp8Blocks(cols), 0.01f);
      m.scales_ = scales;
    }
    for (int64_t i = 0; i < rows * cols; ++i) {
      uint32_t code = static_cast<uint32_t>(rng());
      if (dtype == DType::kF8E4M3) {
        code &= 0xff;
        if ((code & 0x7f) == 0x7f) code ^= 1;  // NaN
      } else if (dtype == DType::kF16) {
        code = (code & 0x83ff) | static_cast<uint32_t>(RandomInt(rng, 8, 15)) << 10;
      } else {
        code = std::bit_cast<uint32_t>(RandomFloats(rng, 1)[0]);
        if (dtype == DType::kBF16) code >>= 16;
      }
      m.SetCode(i, code);
    }
    return m;
  }

  /// Random blocks of a block format, the binary16s among their fields from 2^-14 to 2^-3.
  static TestMatrix RandomBlocks(Rng& rng, DType dtype, int64_t rows, int64_t cols) {
    TestMatrix m(dtype, rows, cols);
    for (std::byte& byte : m.bytes_) byte = static_cast<std::byte>(rng());
    const int64_t block_bytes = BlockOf(dtype).bytes;
    for (int64_t at = 0; at < static_cast<int64_t>(m.bytes_.size()); at += block_bytes) {
      for (const TileField& field : TileFieldsOf(dtype)) {
        if (field.unit != 2) continue;
        const uint16_t half = static_cast<uint16_t>((rng() & 0x83ff) | RandomInt(rng, 1, 12) << 10);
        std::memcpy(m.bytes_.data() + at + field.offset, &half, sizeof(half));
      }
    }
    if (rows * cols > 0) DequantizeRow(dtype, m.bytes_.data(), rows * cols, m.values_.data());
    return m;
  }

  static TestMatrix FromFloats(int64_t rows, int64_t cols, const std::vector<float>& values) {
    TestMatrix m(DType::kF32, rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) m.SetCode(i, std::bit_cast<uint32_t>(values[i]));
    return m;
  }

  /// Integers in [-limit, limit], which all formats hold. Scales of f8 are powers of two.
  static TestMatrix RandomIntegers(Rng& rng, DType dtype, int64_t rows, int64_t cols, int limit) {
    TestMatrix m(dtype, rows, cols);
    if (dtype == DType::kF8E4M3) {
      for (int64_t i = 0; i < Fp8Blocks(rows) * Fp8Blocks(cols); ++i) {
        m.scales_.push_back(static_cast<float>(1 << RandomInt(rng, 0, 3)));
      }
    }
    std::vector<uint32_t> codes;
    for (int value = -limit; value <= limit; ++value) {
      uint32_t code = std::bit_cast<uint32_t>(static_cast<float>(value));
      if (dtype == DType::kBF16) code >>= 16;
      if (dtype == DType::kF16 || dtype == DType::kF8E4M3) {
        for (code = 0; DecodeCode(dtype, code) != static_cast<float>(value);) ++code;
      }
      codes.push_back(code);
    }
    for (int64_t i = 0; i < rows * cols; ++i) m.SetCode(i, codes[RandomInt(rng, 0, 2 * limit)]);
    return m;
  }

  Matrix view() const {
    return Matrix{.data = bytes_.data(),
                  .dtype = dtype_,
                  .rows = rows_,
                  .cols = cols_,
                  .scale_inv = scales_.empty() ? nullptr : scales_.data()};
  }

  /// The same matrix in tiles, in memory of its own that `tiles` keeps.
  Matrix Tiled(std::vector<std::byte>& tiles) const {
    tiles.resize(TiledBytes(dtype_, rows_, cols_));
    TileMatrix(dtype_, rows_, cols_, bytes_.data(), tiles.data());
    Matrix tiled = view();
    tiled.data = tiles.data();
    tiled.layout = MatrixLayout::kTiled16;
    return tiled;
  }

  double At(int64_t row, int64_t col) const { return values_[row * cols_ + col]; }

 private:
  void SetCode(int64_t index, uint32_t code) {
    const int64_t size = DTypeBytes(dtype_, 1);
    std::memcpy(bytes_.data() + index * size, &code, size);  // little-endian
    values_[index] = DecodeCode(dtype_, code);
    if (!scales_.empty()) {
      values_[index] *=
          scales_[index / cols_ / kFp8BlockSize * Fp8Blocks(cols_) + index % cols_ / kFp8BlockSize];
    }
  }

  DType dtype_;
  int64_t rows_;
  int64_t cols_;
  std::vector<std::byte> bytes_;
  std::vector<float> scales_;
  std::vector<double> values_;
};

/// x, with the bound of its absolute error after float arithmetic.
struct Bounded {
  double value = 0;
  double error = 0;
};

/// w x where x is known to within its errors.
inline std::vector<Bounded> MultiplyBounded(const TestMatrix& w, int64_t first_row,
                                            int64_t num_rows, const std::vector<Bounded>& x) {
  std::vector<Bounded> y(num_rows);
  const int64_t n = static_cast<int64_t>(x.size());
  for (int64_t r = 0; r < num_rows; ++r) {
    double magnitude = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double weight = w.At(first_row + r, c);
      y[r].value += weight * x[c].value;
      y[r].error += std::abs(weight) * x[c].error;
      magnitude += std::abs(weight) * (std::abs(x[c].value) + x[c].error);
    }
    y[r].error += SumDepth(n) * (kUnit * magnitude + static_cast<double>(n) * kTiny);
  }
  return y;
}

inline std::vector<Bounded> Exactly(const float* x, int64_t n) {
  std::vector<Bounded> y(n);
  for (int64_t i = 0; i < n; ++i) y[i].value = x[i];
  return y;
}

/// Activations as the integer kernels take them.
inline std::vector<double> RoundedToBlocks(const std::vector<float>& x) {
  std::vector<ActivationBlock> blocks(x.size() / kActivationBlock);
  PortableTileOps().quantize(x.data(), static_cast<int64_t>(x.size()), blocks.data());
  std::vector<double> rounded(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    rounded[i] = static_cast<double>(blocks[i / 32].scale) * blocks[i / 32].codes[i % 32];
  }
  return rounded;
}

/// The values that a block format's row would have if all its codes were stored as zeros: what is
/// subtracted, minima or offsets.
inline std::vector<double> Subtracted(const Matrix& row_major, int64_t row) {
  const int64_t row_bytes = DTypeBytes(row_major.dtype, row_major.cols);
  std::vector<std::byte> bytes(row_major.data + row * row_bytes,
                               row_major.data + (row + 1) * row_bytes);
  for (int64_t at = 0; at < row_bytes; at += BlockOf(row_major.dtype).bytes) {
    for (const TileField& field : TileFieldsOf(row_major.dtype)) {
      if (field.unit == 4) std::memset(bytes.data() + at + field.offset, 0, field.bytes);
    }
  }
  std::vector<double> values(row_major.cols);
  DequantizeRow(row_major.dtype, bytes.data(), row_major.cols, values.data());
  return values;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_KERNEL_TESTING_H_
