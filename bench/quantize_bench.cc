// How many weights a second one core quantizes. docs/quality.md has what the formats lose.

#include <cstddef>
#include <random>
#include <vector>

#include "base/check.h"
#include "benchmark/benchmark.h"
#include "kernels/matrix.h"
#include "kernels/quant/fp8_blocks.h"
#include "kernels/quant/quantize.h"

namespace caravan {
namespace {

/// 128 rows of R1's hidden size, normal.
constexpr int64_t kRows = 128, kCols = 7168;

std::vector<float> NormalWeights() {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> weights(kRows * kCols);
  for (float& weight : weights) weight = normal(rng);
  return weights;
}

void Quantize(benchmark::State& state, DType dtype) {
  const std::vector<float> weights = NormalWeights();
  std::vector<std::byte> out(DTypeBytes(dtype, kRows * kCols));
  for (auto _ : state) {
    CARAVAN_CHECK(QuantizeRow(dtype, weights.data(), kRows * kCols, nullptr, out.data()).ok());
  }
  state.SetItemsProcessed(state.iterations() * kRows * kCols);
}
BENCHMARK_CAPTURE(Quantize, q8_0, DType::kQ8_0);
BENCHMARK_CAPTURE(Quantize, q4_0, DType::kQ4_0);
BENCHMARK_CAPTURE(Quantize, q6_K, DType::kQ6_K);
BENCHMARK_CAPTURE(Quantize, q5_K, DType::kQ5_K);
BENCHMARK_CAPTURE(Quantize, q4_K, DType::kQ4_K);
BENCHMARK_CAPTURE(Quantize, q3_K, DType::kQ3_K);
BENCHMARK_CAPTURE(Quantize, q2_K, DType::kQ2_K);

void QuantizeFp8(benchmark::State& state) {
  const std::vector<float> weights = NormalWeights();
  std::vector<std::byte> codes(kRows * kCols);
  std::vector<float> scale_inv(Fp8Blocks(kRows) * Fp8Blocks(kCols));
  for (auto _ : state) {
    CARAVAN_CHECK(
        QuantizeFp8Blocks(weights.data(), kRows, kCols, codes.data(), scale_inv.data()).ok());
  }
  state.SetItemsProcessed(state.iterations() * kRows * kCols);
}
BENCHMARK(QuantizeFp8);

}  // namespace
}  // namespace caravan

BENCHMARK_MAIN();
