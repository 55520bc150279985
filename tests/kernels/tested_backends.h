#ifndef CARAVAN_TESTS_KERNELS_TESTED_BACKENDS_H_
#define CARAVAN_TESTS_KERNELS_TESTED_BACKENDS_H_

// The backends under test and what their arithmetic may be off by. The tests of operations are
// built into one binary for the CPU and one for CUDA: each has its own definitions of what is
// declared here (cpu_tested_backends.cc, cuda/cuda_tested_backends.cc).

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/reference_backend.h"

namespace caravan {

/// A way to compute that gives the same bits whatever the number of threads.
struct TestedKind {
  std::string name;
  std::function<std::unique_ptr<Backend>(int num_threads)> make;
  bool slow = false;  // some large cases are left out
};

std::vector<TestedKind> TestedKinds();

/// Numbers of threads that are worth trying.
std::vector<int> TestedThreadCounts();

/// Every sum of a product of n terms is a tree in which a term passes through so many operations at
/// most, with what a weight's scale and the rounding of the expected and the computed result take.
/// So |error| <= SumDepth(n) * kUnit * sum |a_i b_i| (Higham, "Accuracy and Stability of Numerical
/// Algorithms", section 4.2), with 1% for the higher orders.
double SumDepth(int64_t n);

/// How attention rounds.
struct AttentionRounding {
  // How often a weight of the softmax may be corrected: where the maximum of a tile rises, and
  // where parts are merged.
  double corrections = 0;
  // Whether queries in the latent space, the cached values of Q8_0 and the weights are binary16.
  bool halves = false;
};
AttentionRounding AttentionRoundingOf(const MlaShape& shape, DType kv_dtype, int64_t num_positions);

struct NamedBackend {
  std::string name;
  std::unique_ptr<Backend> backend;
};

/// One of each kind, on 2 threads where there are threads.
inline std::vector<NamedBackend> TestedBackends() {
  std::vector<NamedBackend> backends;
  for (const TestedKind& kind : TestedKinds()) backends.push_back({kind.name, kind.make(2)});
  return backends;
}

/// As TestedBackends, and the reference before them.
inline std::vector<NamedBackend> AllBackends() {
  std::vector<NamedBackend> backends = TestedBackends();
  backends.insert(backends.begin(), NamedBackend{"reference", MakeReferenceBackend()});
  return backends;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_TESTED_BACKENDS_H_
