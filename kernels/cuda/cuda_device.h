#ifndef CARAVAN_KERNELS_CUDA_CUDA_DEVICE_H_
#define CARAVAN_KERNELS_CUDA_CUDA_DEVICE_H_

// One CUDA device: what it is and how much memory it has. A value that any thread may copy and
// read; the device itself belongs to the process.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace caravan {

/// The oldest card that the kernels run on: Turing, 7.5.
inline constexpr int kMinComputeCapability = 75;

struct CudaMemoryInfo {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

/// Devices that the driver shows (CUDA_VISIBLE_DEVICES may hide some); at least one.
/// Errors: Unavailable - no driver, no card, or a driver that is older than this binary needs.
absl::StatusOr<int> CountCudaDevices();

class CudaDevice {
 public:
  /// Makes the device the calling thread's current one as well.
  /// Errors: those of CountCudaDevices.
  ///         InvalidArgument - there is no such device (says how many there are).
  ///         Unavailable - the card is older than kMinComputeCapability, or this binary was built
  ///         without code for it.
  static absl::StatusOr<CudaDevice> Open(int ordinal);

  int ordinal() const { return ordinal_; }
  /// "NVIDIA H100 80GB HBM3".
  const std::string& name() const { return name_; }
  /// "cuda:0 (NVIDIA H100 80GB HBM3)".
  std::string Title() const;
  /// Major times ten plus minor: 75, 90, 120.
  int compute_capability() const { return compute_capability_; }
  int num_multiprocessors() const { return num_multiprocessors_; }
  int64_t l2_bytes() const { return l2_bytes_; }
  /// Shared memory that one thread block may ask for.
  int64_t max_shared_bytes() const { return max_shared_bytes_; }

  /// Whether a kernel may begin before the one ahead of it ends (overlapped_launch.cuh): on cards
  /// from 9.0 on, by code that was compiled for them.
  bool overlaps_kernels() const { return overlaps_kernels_; }

  /// Errors: Internal.
  absl::StatusOr<CudaMemoryInfo> Memory() const;

  /// Whatever the calling thread allocates or launches from now on is on this device.
  absl::Status MakeCurrent() const;

 private:
  CudaDevice() = default;

  int ordinal_ = 0;
  std::string name_;
  int compute_capability_ = 0;
  int num_multiprocessors_ = 0;
  int64_t l2_bytes_ = 0;
  int64_t max_shared_bytes_ = 0;
  bool overlaps_kernels_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_DEVICE_H_
