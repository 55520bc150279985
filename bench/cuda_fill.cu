#include "base/check.h"
#include "bench/cuda_fill.h"

namespace caravan {
namespace {

constexpr int kThreads = 512;

__global__ void FillKernel(uint32_t* words, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    // splitmix64's finalizer, of which the upper half is taken.
    uint64_t z = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    words[i] = static_cast<uint32_t>((z ^ z >> 31) >> 32) & 0xbfbfbfbfu;
  }
}

}  // namespace

void FillRandomly(const CudaStream& stream, std::byte* data, int64_t bytes) {
  FillKernel<<<4096, kThreads, 0, stream.get()>>>(reinterpret_cast<uint32_t*>(data), bytes / 4);
  CARAVAN_CHECK(cudaGetLastError() == cudaSuccess);
}

}  // namespace caravan
