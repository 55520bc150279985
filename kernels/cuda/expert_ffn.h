#ifndef CARAVAN_KERNELS_CUDA_EXPERT_FFN_H_
#define CARAVAN_KERNELS_CUDA_EXPERT_FFN_H_

// Gated feed-forward networks on the device: routed experts over whatever of them lies in its
// memory, and a plain one. All experts of a batch go through the same few launches: rows sorted by
// expert, gate and up with SwiGLU, down, and the weighted sum over a row's experts in ascending
// order of expert. A row's result does not depend on the rows beside it.
//
// Used by one thread at a time. Queues its work and does not wait for it; what it reads (weights
// included) must stay until the stream is past it.

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/cuda_scratch.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/expert_routing.h"
#include "kernels/expert_batches.h"

namespace caravan {

class CudaExpertFfn {
 public:
  /// Takes all memory that calls within the limits need (SizesFor). `stream` outlives it.
  /// Errors: ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<CudaExpertFfn>> Create(const CudaStream& stream,
                                                               const CudaFfnLimits& limits);

  /// As Backend::RoutedExperts, all pointers but `experts` itself in device memory. A row's ids are
  /// distinct, but for kNotHere, and at most kMaxExpertId. A batch's memory may be used anew by
  /// experts.Next() only where that is queued on the stream, or waits for it. Errors: those of
  /// experts.Next().
  ///         InvalidArgument - matrices that CheckCudaMatrix refuses, or experts of a batch whose
  ///         matrices differ in type.
  ///         Internal - a launch failed.
  absl::Status RunExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                          const int32_t* expert_ids, const float* weights, int64_t k, float* out);

  /// As Backend::Ffn. Errors: as those of RunExperts.
  absl::Status RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows, float* out);

 private:
  /// What a call's rows are.
  struct Call {
    const float* x;
    int64_t num_rows;
    const int32_t* expert_ids;
    const float* weights;
    int64_t k;
    float* out;
    bool keeps;               // products of all batches, to be added at the end
    bool has_blocks = false;  // of x

    int64_t num_shares() const { return num_rows * k; }
  };

  CudaExpertFfn(const CudaStream& stream, const CudaFfnLimits& limits)
      : stream_(stream), limits_(limits) {}

  /// x as blocks, if they are not there yet.
  absl::Status QuantizeInputs(Call& call, int64_t cols);
  absl::Status RunBatch(Call& call, absl::Span<const LoadedExpert> batch);
  /// inner_ = SwiGLU of the sorted shares.
  absl::Status RunInner(Call& call, const FfnWeights& first, int64_t count);
  /// The products of the batch's shares with columns [first_tile, first_tile + num_tiles) of down.
  absl::Status RunDown(const Call& call, const Matrix& down, int64_t count, int64_t first_tile,
                       int64_t num_tiles, int64_t stride);
  /// One product of all classes of passes.
  absl::Status LaunchPasses(const Call& call, DType dtype, int64_t count, ProductArgs args);
  ActivationRows InnerBlocks(int64_t num_rows, int64_t inter) const;

  const CudaStream& stream_;
  const CudaFfnLimits limits_;
  DeviceBuffer x_blocks_;
  DeviceBuffer routing_bytes_;
  ExpertRouting routing_;  // in routing_bytes_
  DeviceBuffer inner_;     // [shares, inter] as blocks or floats
  DeviceBuffer work_;      // gates and ups, then products
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_EXPERT_FFN_H_
