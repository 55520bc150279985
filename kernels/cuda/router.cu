#include <cmath>

#include "base/check.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/overlapped_launch.cuh"
#include "kernels/cuda/router.h"

namespace caravan {
namespace {

constexpr int kMaxExperts = 2048;
constexpr int kMaxChosen = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

// What is not to be chosen while anything else is left; of several such, the lowest still comes
// first, as the CPU's router has it.
constexpr float kNever = -INFINITY;

__device__ float KeyOf(float score) { return isnan(score) ? kNever : score; }

/// Whether key a of index i goes before key b of index j.
__device__ bool Before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

/// Before with keys as integers that ascend as they do; 0: none. Both zeros are one key.
__device__ uint32_t OrderOf(float key) {
  const uint32_t bits = __float_as_uint(key + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ uint32_t WarpMaxOf(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int step = 16; step > 0; step /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
#endif
}

/// Lane l has every 32nd expert from l on: visit(expert, i) for its i-th.
template <int kEach, typename Visit>
__device__ void ForEach(int n, int lane, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (32 * i + lane < n) visit(32 * i + lane, i);
  }
}

/// values = the scoring function of the logits that they are.
template <int kEach>
__device__ void Score(ScoringFunc function, int n, int lane, float (&values)[kEach]) {
  if (function == ScoringFunc::kSigmoid) {
    ForEach<kEach>(n, lane, [&](int, int i) { values[i] = 1 / (1 + expf(-values[i])); });
    return;
  }
  float max = kNever;
  ForEach<kEach>(n, lane, [&](int, int i) { max = fmaxf(max, values[i]); });
  max = WarpMax(max);
  float total = 0;
  ForEach<kEach>(n, lane, [&](int, int i) { total += values[i] = expf(values[i] - max); });
  total = WarpSum(total);
  ForEach<kEach>(n, lane, [&](int, int i) { values[i] /= total; });
}

/// group_keys [n_group, then n_group]: each group's key, then kNever but for the topk_group best, 0
/// for those. keys [n].
__device__ void LimitGroups(const RouterShape& shape, int n, int lane, const float* keys,
                            float* group_keys) {
  const int num_groups = static_cast<int>(shape.n_group);
  const int group_size = n / num_groups;
  // As many neighbours share a group as there are lanes for, and keys for each of them.
  int sharers = 1;
  while (sharers * 2 * num_groups <= 32 && group_size % (sharers * 2) == 0) sharers *= 2;
  const int steps = group_size / sharers;
  for (int first = 0; first < num_groups; first += 32 / sharers) {
    const int g = first + lane / sharers;
    float best = kNever;
    float second = kNever;
    if (g < num_groups) {
      int step = g % steps;  // of their own, as keys of one place in each group share a bank
      for (int i = 0; i < steps; ++i) {
        const float key = keys[g * group_size + step * sharers + lane % sharers];
        second = fmaxf(second, fminf(best, key));
        best = fmaxf(best, key);
        step = step + 1 == steps ? 0 : step + 1;
      }
    }
    for (int apart = 1; apart < sharers; apart *= 2) {
      const float other_best = __shfl_xor_sync(kAllLanes, best, apart);
      const float other_second = __shfl_xor_sync(kAllLanes, second, apart);
      second = fmaxf(fminf(best, other_best), fmaxf(second, other_second));
      best = fmaxf(best, other_best);
    }
    const bool counts_two = shape.topk_method == TopkMethod::kNoauxTc && group_size > 1;
    if (g < num_groups) group_keys[g] = KeyOf(counts_two ? best + second : best);
  }
  __syncwarp();
  for (int first = 0; first < num_groups; first += 32) {
    const int g = first + lane;
    int rank = 0;
    for (int other = 0; g < num_groups && other < num_groups; ++other) {
      if (Before(group_keys[other], other, group_keys[g], g)) ++rank;
    }
    if (g < num_groups) group_keys[num_groups + g] = rank < shape.topk_group ? 0 : kNever;
  }
  __syncwarp();
}

// expert_ids, weights = the chosen experts of a row of logits (DeepSeek-V3, arXiv:2412.19437,
// section 2.1.2). Grid [num_rows], block one warp, up to 32 kEach experts. Shared memory: two
// floats an expert, two a group, and 8 bytes a chosen expert. Bytes: 4 an expert, and its bias,
// which is there before the kernel ahead has ended; a comparison for each expert and each choice.
template <int kEach>
__global__ void RouteKernel(RouterShape shape, const float* logits, const float* bias,
                            int32_t* expert_ids, float* weights) {
  extern __shared__ float shared[];
  const int lane = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(shape.n_routed_experts);
  const int k = static_cast<int>(shape.num_experts_per_tok);
  const int num_groups = static_cast<int>(shape.n_group);
  float* const scores = shared;
  float* const keys = scores + n;
  float* const group_keys = keys + n;
  int* const chosen = reinterpret_cast<int*>(group_keys + 2 * num_groups);
  int* const ascending = chosen + k;
  const bool is_noaux = shape.topk_method == TopkMethod::kNoauxTc;

  LetNextBegin();
  float biases[kEach] = {};
  if (is_noaux) ForEach<kEach>(n, lane, [&](int e, int i) { biases[i] = bias[e]; });
  WaitForEarlier();
  float values[kEach];
  ForEach<kEach>(
      n, lane, [&](int e, int i) { values[i] = logits[blockIdx.x * shape.n_routed_experts + e]; });
  Score<kEach>(shape.scoring_func, n, lane, values);
  ForEach<kEach>(n, lane, [&](int e, int i) {
    scores[e] = values[i];
    values[i] = KeyOf(is_noaux ? values[i] + biases[i] : values[i]);
    keys[e] = values[i];
  });
  __syncwarp();
  if (shape.topk_method != TopkMethod::kGreedy && shape.topk_group < shape.n_group) {
    LimitGroups(shape, n, lane, keys, group_keys);
    const int group_size = n / num_groups;
    ForEach<kEach>(n, lane, [&](int e, int i) {
      if (group_keys[num_groups + e / group_size] != 0) values[i] = kNever;
    });
  }

  uint32_t orders[kEach] = {};
  ForEach<kEach>(n, lane, [&](int, int i) { orders[i] = OrderOf(values[i]); });
  for (int choice = 0; choice < k; ++choice) {
    uint32_t best = 0;
    int at = 0;  // of the lane's, the lowest of the best
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (orders[i] > best) {
        best = orders[i];
        at = i;
      }
    }
    const uint32_t most = WarpMaxOf(best);
    // The lowest expert is the greatest of what is left to the end.
    const int found =
        0x7fffffff - static_cast<int>(WarpMaxOf(best == most ? 0x7fffffffu - (32 * at + lane) : 0));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (32 * i + lane == found) orders[i] = 0;
    }
    if (lane == 0) chosen[choice] = found;
  }
  __syncwarp();

  for (int i = lane; i < k; i += 32) {
    int rank = 0;
    for (int j = 0; j < k; ++j) rank += chosen[j] < chosen[i] ? 1 : 0;
    ascending[rank] = chosen[i];
  }
  __syncwarp();
  float factor = shape.routed_scaling_factor;
  if (shape.norm_topk_prob) {
    float total = 0;  // in ascending order of experts, by every lane
    for (int i = 0; i < k; ++i) total += scores[ascending[i]];
    factor = (is_noaux ? factor : 1) / (total + 1e-20f);
  }
  for (int i = lane; i < k; i += 32) {
    const int64_t place = static_cast<int64_t>(blockIdx.x) * k + i;
    expert_ids[place] = ascending[i];
    weights[place] = scores[ascending[i]] * factor;
  }
}

}  // namespace

absl::Status LaunchRoute(const CudaStream& stream, const RouterShape& shape, const float* logits,
                         const float* bias, int64_t num_rows, int32_t* expert_ids, float* weights) {
  CARAVAN_CHECK(shape.n_routed_experts <= kMaxExperts && shape.num_experts_per_tok <= kMaxChosen);
  CARAVAN_CHECK(shape.num_experts_per_tok <= shape.n_routed_experts);
  CARAVAN_CHECK(shape.n_group > 0 && shape.n_routed_experts % shape.n_group == 0);
  CARAVAN_CHECK(shape.topk_group <= shape.n_group);
  if (num_rows == 0 || shape.num_experts_per_tok == 0) return absl::OkStatus();
  const int64_t floats = 2 * (shape.n_routed_experts + shape.n_group + shape.num_experts_per_tok);
  const auto kernel =
      shape.n_routed_experts <= 256 ? RouteKernel<8> : RouteKernel<kMaxExperts / 32>;
  return LaunchOverlapped(stream, "RouteKernel", kernel, num_rows, 32,
                          floats * static_cast<int64_t>(sizeof(float)), shape, logits, bias,
                          expert_ids, weights);
}

}  // namespace caravan
