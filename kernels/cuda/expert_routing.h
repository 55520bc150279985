#ifndef CARAVAN_KERNELS_CUDA_EXPERT_ROUTING_H_
#define CARAVAN_KERNELS_CUDA_EXPERT_ROUTING_H_

// What lies between the products of a layer's experts: rows sorted by expert, SwiGLU where the
// products did not apply it, and the weighted sum over a row's experts.

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/product_args.h"

namespace caravan {

/// Experts that go through one set of launches.
inline constexpr int kMaxTableExperts = 256;
/// Ids that experts may have: [0, kMaxExpertId].
inline constexpr int kMaxExpertId = 4095;
/// Experts that a row may have chosen.
inline constexpr int kMaxChosenExperts = 64;

/// The experts of a batch, as a kernel takes them by value.
struct ExpertTable {
  int count = 0;
  int32_t ids[kMaxTableExperts];
  const std::byte* matrices[kMaxTableExperts][3];  // gate, up, down
  const float* scales[kMaxTableExperts][3];
};

/// Passes by how many rows they have: up to 8 (1 if the batch has one row), 16, 32.
inline constexpr int kNumPassClasses = 3;
inline constexpr int kPassClassRows[kNumPassClasses] = {8, 16, 32};

/// Which rows go through which expert, in device memory. A share is what an expert does for a row:
/// share t * k + j is that of the row t and its j-th expert. Shares of the table's experts are
/// sorted by expert; of equal ones the order is any, as no result depends on it.
struct ExpertRouting {
  ExpertPass* passes[kNumPassClasses] = {};  // [MaxPasses(...)] each
  int32_t* num_passes = nullptr;             // [kNumPassClasses]
  int32_t* num_sorted = nullptr;             // shares of the table's experts
  int32_t* shares = nullptr;                 // [num_rows * k]: which share is the i-th
  int32_t* rows = nullptr;                   // [num_rows * k]: and its row
};

/// How many passes of a class `count` experts and so many shares may have.
int64_t MaxPasses(int pass_class, int64_t count, int64_t num_shares);

/// Bytes for the routing of so many shares, and how it lies in them (aligned to 256).
int64_t RoutingBytes(int64_t num_shares);
ExpertRouting RoutingAt(std::byte* memory, int64_t num_shares);

/// Queues the sorting of expert_ids [num_rows, k]. A row's ids are distinct.
absl::Status RouteShares(const CudaStream& stream, const ExpertTable& table,
                         const int32_t* expert_ids, int64_t num_rows, int64_t k,
                         const ExpertRouting& routing);

/// Queues inner = silu(gates) * ups for the first *num_rows rows (null: max_rows), as blocks if
/// those are given, else as floats over `gates`. gates, ups [max_rows, cols].
absl::Status ApplySwiGlu(const CudaStream& stream, float* gates, const float* ups, int64_t max_rows,
                         int64_t cols, const int32_t* num_rows, const ActivationRows* blocks);

/// Queues out[t, first_col + c] += sum over the experts first_id .. last_id of row t, ids
/// ascending, of weights[t, j] * products[t * k + j, c], by fused multiply-add. products [num_rows
/// * k, cols], out [num_rows, out_stride].
absl::Status AddProducts(const CudaStream& stream, const float* products, const int32_t* expert_ids,
                         const float* weights, int64_t num_rows, int64_t k, int64_t first_col,
                         int64_t cols, int32_t first_id, int32_t last_id, float* out,
                         int64_t out_stride);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_EXPERT_ROUTING_H_
