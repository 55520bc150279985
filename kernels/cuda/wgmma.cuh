#ifndef CARAVAN_KERNELS_CUDA_WGMMA_CUH_
#define CARAVAN_KERNELS_CUDA_WGMMA_CUH_

// Products by a warp group, of 9.0a alone (PTX ISA, "Asynchronous warpgroup level matrix
// instructions"): its 128 threads call all of this together.
//
// Matrices of binary16 in shared memory lie in panels of 64 columns: row r at 128 r bytes of a
// panel (aligned to 1024), its eight pieces of 16 bytes in an order of its own, piece p at p ^ r %
// 8.

#include <cstdint>

namespace caravan {

__device__ inline uint32_t PanelPlace(int row, int piece) {
  return static_cast<uint32_t>(row * 128 + ((piece ^ (row % 8)) << 4));
}

/// What the instructions take for a matrix that begins at `shared` of a panel. panel_bytes: from
/// panel to panel, where the matrix has several.
__device__ inline uint64_t PanelMatrix(uint32_t shared, uint32_t panel_bytes) {
  constexpr uint64_t kEightRows = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kEightRows << 32 | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         (shared & 0x3ffff) >> 4;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Before products, after the threads wrote registers that they take.
__device__ inline void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most kLater commits are under way.
template <int kLater>
__device__ inline void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
}
/// After a wait: the sums are read and changed no earlier.
__device__ inline void Settle(float (&c)[32]) {
#pragma unroll
  for (float& sum : c) asm volatile("" : "+f"(sum)::"memory");
}
/// What this thread wrote to shared memory is there for products of whoever it then meets at a
/// barrier.
__device__ inline void ShowToProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define CARAVAN_WGMMA_SUMS                                                                      \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define CARAVAN_WGMMA_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define CARAVAN_WGMMA_32(c)                                                                    \
  CARAVAN_WGMMA_4(c, 0), CARAVAN_WGMMA_4(c, 4), CARAVAN_WGMMA_4(c, 8), CARAVAN_WGMMA_4(c, 12), \
      CARAVAN_WGMMA_4(c, 16), CARAVAN_WGMMA_4(c, 20), CARAVAN_WGMMA_4(c, 24),                  \
      CARAVAN_WGMMA_4(c, 28)

/// c (+)= a b^T: a [64, 16] and b [64, 16] in rows of shared memory. Thread 32 w + l has of c [64,
/// 64] rows 16 w + l / 4 and 8 below it, of each eight columns 2 (l % 4) and the next: two of the
/// upper row, two of the lower. adds: false begins from 0.
__device__ inline void BeginRowsByRows(float (&c)[32], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " CARAVAN_WGMMA_SUMS
      ", %32, %33, adds, 1, 1, 0, 0;\n}"
      : CARAVAN_WGMMA_32(c)
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)));
}

/// c += a b: a [64, 16] in registers, as mma's A of each warp's 16 rows; b [16, 64] in rows of
/// shared memory.
__device__ inline void BeginByColumns(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.eq.u32 adds, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " CARAVAN_WGMMA_SUMS
      ", {%32, %33, %34, %35}, %36, adds, 1, 1, 1;\n}"
      : CARAVAN_WGMMA_32(c)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef CARAVAN_WGMMA_SUMS
#undef CARAVAN_WGMMA_4
#undef CARAVAN_WGMMA_32

#endif

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_WGMMA_CUH_
