#include <algorithm>

#include "tests/kernels/kernel_testing.h"

namespace caravan {

std::vector<TestedKind> TestedKinds() {
  std::vector<TestedKind> kinds;
  for (const CpuIsa isa : TestedIsas()) {
    kinds.push_back({CpuBackendFor(isa, 1)->Name(),
                     [isa](int num_threads) { return CpuBackendFor(isa, num_threads); },
                     isa == CpuIsa::kPortable});
  }
  return kinds;
}

std::vector<int> TestedThreadCounts() { return {1, 2, 3}; }

// The term's product, its lane's additions (1 of 8 lanes, over at most 512 terms), 3 for the lanes,
// 1 for each 512 terms; then 3 more for a weight's scale, and the rounding of the expected and the
// computed result.
double SumDepth(int64_t n) {
  const int64_t lane_terms = (std::min<int64_t>(n, 512) + 7) / 8;
  return 1.01 * static_cast<double>(1 + lane_terms + 3 + (n + 511) / 512 + 3);
}

// Tiles of 64 positions, spans of 256.
AttentionRounding AttentionRoundingOf(const MlaShape&, DType, int64_t num_positions) {
  const double n = static_cast<double>(num_positions);
  return {.corrections = n / 64 + n / 256 + 2};
}

}  // namespace caravan
