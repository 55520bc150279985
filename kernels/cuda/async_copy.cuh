#ifndef CARAVAN_KERNELS_CUDA_ASYNC_COPY_CUH_
#define CARAVAN_KERNELS_CUDA_ASYNC_COPY_CUH_

// Copies from global to shared memory that a thread does not wait for where the card can do that
// (8.0 on; PTX ISA, "cp.async"). They are waited for in batches, which CommitCopies ends.

#include <cstdint>

namespace caravan {

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// Sixteen bytes, both addresses aligned; zeros where `there` is false.
__device__ inline void CopyAhead(void* to, const void* from, bool there = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(SharedAddress(to)),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ inline void CommitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Until at most kLater of the thread's batches are under way.
template <int kLater>
__device__ inline void WaitForCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
#endif
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_ASYNC_COPY_CUH_
