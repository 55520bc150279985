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

/// scores[e] = the scoring function of logits[e]; lane l has every 32nd expert from l on.
__device__ void Score(const RouterShape& shape, const float* logits, int n, int lane,
                      float* scores) {
  if (shape.scoring_func == ScoringFunc::kSigmoid) {
    for (int e = lane; e < n; e += 32) scores[e] = 1 / (1 + expf(-logits[e]));
    return;
  }
  float max = kNever;
  for (int e = lane; e < n; e += 32) max = fmaxf(max, logits[e]);
  max = WarpMax(max);
  float total = 0;
  for (int e = lane; e < n; e += 32) total += scores[e] = expf(logits[e] - max);
  total = WarpSum(total);
  for (int e = lane; e < n; e += 32) scores[e] /= total;
}

/// Sets the keys of all groups but the topk_group best to kNever. group_keys [n_group].
__device__ void LimitGroups(const RouterShape& shape, int n, int lane, float* keys,
                            float* group_keys) {
  const int num_groups = static_cast<int>(shape.n_group);
  const int group_size = n / num_groups;
  for (int g = lane; g < num_groups; g += 32) {
    float best = kNever;
    float second = kNever;
    for (int i = 0; i < group_size; ++i) {
      const float key = keys[g * group_size + i];
      second = fmaxf(second, fminf(best, key));
      best = fmaxf(best, key);
    }
    const bool counts_two = shape.topk_method == TopkMethod::kNoauxTc && group_size > 1;
    group_keys[g] = KeyOf(counts_two ? best + second : best);
  }
  __syncwarp();
  for (int g = lane; g < num_groups; g += 32) {
    int rank = 0;
    for (int other = 0; other < num_groups; ++other) {
      if (Before(group_keys[other], other, group_keys[g], g)) ++rank;
    }
    if (rank < shape.topk_group) continue;
    for (int i = 0; i < group_size; ++i) keys[g * group_size + i] = kNever;
  }
  __syncwarp();
}

// expert_ids, weights = the chosen experts of a row of logits (DeepSeek-V3, arXiv:2412.19437,
// section 2.1.2). Grid [num_rows], block one warp. Shared memory: two floats an expert, one a
// group, 4 bytes a chosen expert, and a bit an expert. Bytes: 4 an expert; a comparison for each
// expert and each choice.
__global__ void RouteKernel(RouterShape shape, const float* logits, const float* bias,
                            int32_t* expert_ids, float* weights) {
  extern __shared__ float shared[];
  LetNextBegin();
  WaitForEarlier();
  const int lane = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(shape.n_routed_experts);
  const int k = static_cast<int>(shape.num_experts_per_tok);
  float* const scores = shared;
  float* const keys = scores + n;
  float* const group_keys = keys + n;
  int* const chosen = reinterpret_cast<int*>(group_keys + shape.n_group);

  Score(shape, logits + blockIdx.x * shape.n_routed_experts, n, lane, scores);
  const bool is_noaux = shape.topk_method == TopkMethod::kNoauxTc;
  for (int e = lane; e < n; e += 32) keys[e] = KeyOf(is_noaux ? scores[e] + bias[e] : scores[e]);
  __syncwarp();
  if (shape.topk_method != TopkMethod::kGreedy && shape.topk_group < shape.n_group) {
    LimitGroups(shape, n, lane, keys, group_keys);
  }

  // Lane l keeps which of its experts are taken: bit i is expert 32 i + l.
  unsigned long long taken = 0;
  for (int choice = 0; choice < k; ++choice) {
    float best_key = kNever;
    int best = n;  // behind all others of its key
    for (int e = lane, bit = 0; e < n; e += 32, ++bit) {
      if ((taken >> bit & 1) == 0 && Before(keys[e], e, best_key, best)) {
        best_key = keys[e];
        best = e;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const float key = __shfl_xor_sync(kAllLanes, best_key, step);
      const int other = __shfl_xor_sync(kAllLanes, best, step);
      if (Before(key, other, best_key, best)) {
        best_key = key;
        best = other;
      }
    }
    if (best % 32 == lane) taken |= 1ull << best / 32;
    if (lane == 0) chosen[choice] = best;
  }
  __syncwarp();

  float factor = shape.routed_scaling_factor;
  int32_t* const ids = expert_ids + static_cast<int64_t>(blockIdx.x) * k;
  for (int i = lane; i < k; i += 32) {
    int rank = 0;
    for (int j = 0; j < k; ++j) rank += chosen[j] < chosen[i] ? 1 : 0;
    ids[rank] = chosen[i];
  }
  __syncwarp();
  if (shape.norm_topk_prob) {
    float total = 0;  // in ascending order of experts, by every lane
    for (int i = 0; i < k; ++i) total += scores[ids[i]];
    factor = (is_noaux ? factor : 1) / (total + 1e-20f);
  }
  for (int i = lane; i < k; i += 32) {
    weights[static_cast<int64_t>(blockIdx.x) * k + i] = scores[ids[i]] * factor;
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
  const int64_t floats = 2 * shape.n_routed_experts + shape.n_group + shape.num_experts_per_tok;
  return LaunchOverlapped(stream, "RouteKernel", RouteKernel, num_rows, 32,
                          floats * static_cast<int64_t>(sizeof(float)), shape, logits, bias,
                          expert_ids, weights);
}

}  // namespace caravan
