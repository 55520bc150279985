#include <algorithm>

#include "base/check.h"
#include "bench/cuda_read.h"

namespace caravan {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;

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

/// Each block reads runs of 64 KiB; a thread has eight loads of 16 bytes in flight.
__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* words, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  for (int64_t run = int64_t{blockIdx.x} * kThreads * kUnroll; run < count;
       run += int64_t{gridDim.x} * kThreads * kUnroll) {
    uint4 read[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = run + u * kThreads + threadIdx.x;
      read[u] = i < count ? __ldcs(words + i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += read[u].x ^ read[u].y ^ read[u].z ^ read[u].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

}  // namespace

void FillRandomly(const CudaStream& stream, std::byte* data, int64_t bytes) {
  FillKernel<<<4096, kThreads, 0, stream.get()>>>(reinterpret_cast<uint32_t*>(data), bytes / 4);
  CARAVAN_CHECK(cudaGetLastError() == cudaSuccess);
}

void ReadBytes(const CudaStream& stream, const std::byte* data, int64_t bytes, std::byte* sink) {
  const int64_t runs = (bytes / 16 + kThreads * kUnroll - 1) / (kThreads * kUnroll);
  const int64_t most = int64_t{stream.device().num_multiprocessors()} * 16;
  ReadKernel<<<static_cast<unsigned>(std::min(runs, most)), kThreads, 0, stream.get()>>>(
      reinterpret_cast<const uint4*>(data), bytes / 16, reinterpret_cast<uint32_t*>(sink));
  CARAVAN_CHECK(cudaGetLastError() == cudaSuccess);
}

}  // namespace caravan
