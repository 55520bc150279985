#ifndef CARAVAN_KERNELS_CUDA_OVERLAP_CUH_
#define CARAVAN_KERNELS_CUDA_OVERLAP_CUH_

// What kernels that LaunchOverlapped launches say (overlapped_launch.cuh).

namespace caravan {

/// The next kernel's blocks may take what this one's leave, once all of this one's have begun.
__device__ inline void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Until all kernels ahead on the stream have ended and what they wrote can be read.
__device__ inline void WaitForEarlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_OVERLAP_CUH_
