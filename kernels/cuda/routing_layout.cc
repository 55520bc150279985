// What expert_routing.h says of memory, for hosts without CUDA too.

#include <algorithm>

#include "base/int_math.h"
#include "kernels/cuda/expert_routing.h"

namespace caravan {
namespace {

int64_t Aligned(int64_t bytes) { return RoundUp<int64_t>(bytes, 256); }

}  // namespace

int64_t MaxPasses(int pass_class, int64_t count, int64_t num_shares) {
  // All but the lowest class have more rows a pass than the class below.
  return pass_class == 0 ? std::min(count, num_shares)
                         : num_shares / (kPassClassRows[pass_class - 1] + 1);
}

int64_t RoutingBytes(int64_t num_shares) {
  int64_t bytes = Aligned(sizeof(int32_t) * (kNumPassClasses + 1)) +
                  2 * Aligned(num_shares * static_cast<int64_t>(sizeof(int32_t)));
  for (int c = 0; c < kNumPassClasses; ++c) {
    bytes += Aligned(MaxPasses(c, kMaxTableExperts, num_shares) *
                     static_cast<int64_t>(sizeof(ExpertPass)));
  }
  return bytes;
}

ExpertRouting RoutingAt(std::byte* memory, int64_t num_shares) {
  ExpertRouting routing;
  const auto take = [&memory](int64_t bytes) {
    std::byte* const at = memory;
    memory += Aligned(bytes);
    return at;
  };
  routing.num_passes = reinterpret_cast<int32_t*>(take(sizeof(int32_t) * (kNumPassClasses + 1)));
  routing.num_sorted = routing.num_passes + kNumPassClasses;
  routing.shares = reinterpret_cast<int32_t*>(take(num_shares * 4));
  routing.rows = reinterpret_cast<int32_t*>(take(num_shares * 4));
  for (int c = 0; c < kNumPassClasses; ++c) {
    routing.passes[c] = reinterpret_cast<ExpertPass*>(take(
        MaxPasses(c, kMaxTableExperts, num_shares) * static_cast<int64_t>(sizeof(ExpertPass))));
  }
  return routing;
}

}  // namespace caravan
