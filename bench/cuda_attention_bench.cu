// MLA attention of R1 on a CUDA device, beside what the card reads at most. Not a Google Benchmark:
// times are medians of events, over data that no cache holds.
//   cuda_attention_bench [ordinal]

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "bench/must_be.h"
#include "kernels/cuda/attention_launches.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/mla_attention.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

/// Bytes that are neither zeros nor NaN, as binary16s below 2 or as blocks of Q8_0 alike.
__global__ void FillKernel(uint32_t* words, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    words[i] = x & 0xb7ffb7ffu;
  }
}

__global__ void FillFloatsKernel(float* values, int64_t count, float limit) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    const uint32_t x = (static_cast<uint32_t>(i) * 2654435761u) >> 8;
    values[i] = (static_cast<float>(x) / 8388608.0f - 1) * limit;
  }
}

/// Reads all but a rest of less than 1%. Bytes: all, once.
__global__ void ReadKernel(const uint4* __restrict__ data, int64_t count, uint32_t* out) {
  constexpr int kAtOnce = 8;
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       i + (kAtOnce - 1) * step < count; i += kAtOnce * step) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) v[j] = data[i + j * step];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *out = sum;
}

DeviceBuffer Buffer(const CudaStream& stream, int64_t bytes) {
  return MustBe(DeviceBuffer::Create(stream.device(), bytes));
}

/// Median of 15 runs, in microseconds.
double Microseconds(const CudaStream& stream, const std::function<absl::Status()>& run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 18; ++i) {
    cudaEventRecord(begin, stream.get());
    MustBe(run());
    cudaEventRecord(end, stream.get());
    MustBe(stream.Synchronize());
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    if (i >= 3) times.push_back(milliseconds);
  }
  std::sort(times.begin(), times.end());
  return 1000 * times[times.size() / 2];
}

void Run(int ordinal) {
  const CudaDevice device = MustBe(CudaDevice::Open(ordinal));
  const auto stream = MustBe(CudaStream::Create(device));
  std::printf("%s\n", device.name().c_str());

  const int64_t read_bytes = int64_t{4} << 30;
  const DeviceBuffer data = Buffer(*stream, read_bytes);
  const DeviceBuffer word = Buffer(*stream, 4);
  FillKernel<<<4096, 256, 0, stream->get()>>>(data.as<uint32_t>(), read_bytes / 4);
  const double read_us = Microseconds(*stream, [&] {
    ReadKernel<<<4 * device.num_multiprocessors(), 512, 0, stream->get()>>>(
        data.as<uint4>(), read_bytes / 16, word.as<uint32_t>());
    return absl::OkStatus();
  });
  const double ceiling = static_cast<double>(read_bytes) / read_us / 1e3;
  std::printf("read ceiling %.0f GB/s\n", ceiling);

  const MlaShape shape = {.num_heads = 128,
                          .qk_nope_head_dim = 128,
                          .qk_rope_head_dim = 64,
                          .v_head_dim = 128,
                          .kv_lora_rank = 512,
                          .softmax_scale = 0.1352f};
  const int64_t kv_b_rows = 128 * 256;
  const DeviceBuffer kv_b_data = Buffer(*stream, DTypeBytes(DType::kQ8_0, kv_b_rows * 512));
  FillKernel<<<1024, 256, 0, stream->get()>>>(kv_b_data.as<uint32_t>(), kv_b_data.bytes() / 4);
  const Matrix kv_b = {
      .data = kv_b_data.data(), .dtype = DType::kQ8_0, .rows = kv_b_rows, .cols = 512};
  const int64_t max_rows = 512;
  const DeviceBuffer q = Buffer(*stream, max_rows * 128 * 192 * 4);
  const DeviceBuffer out = Buffer(*stream, max_rows * 128 * 128 * 4);
  FillFloatsKernel<<<1024, 256, 0, stream->get()>>>(q.as<float>(), q.bytes() / 4, 0.001f);
  const int64_t scratch_bytes = int64_t{512} << 20;
  CudaMlaAttention attention = MustBe(CudaMlaAttention::Create(device, scratch_bytes));
  SequenceTable table = MustBe(SequenceTable::Create(device, max_rows, 64 * 64 * 16));

  std::printf("%5s %9s %9s %7s %9s %9s %9s %9s %9s\n", "cache", "sequences", "positions", "rows",
              "all us", "attend us", "read GB/s", "% read", "TFLOP/s");
  struct Case {
    DType dtype;
    int64_t sequences, positions, rows;  // rows: of each, the last
  };
  for (const Case& c : {Case{DType::kF16, 1, 4096, 1}, Case{DType::kF16, 8, 4096, 1},
                        Case{DType::kF16, 64, 4096, 1}, Case{DType::kF16, 64, 1024, 1},
                        Case{DType::kF16, 1, 32768, 1}, Case{DType::kF16, 1, 512, 512},
                        Case{DType::kQ8_0, 1, 4096, 1}, Case{DType::kQ8_0, 64, 4096, 1},
                        Case{DType::kF32, 8, 4096, 1}}) {
    const KvLayout kv = {c.dtype, 64};
    const int64_t block_bytes = 64 * DTypeBytes(c.dtype, 576);
    std::vector<std::vector<std::byte*>> blocks(c.sequences);
    std::vector<SequenceRows> sequences;
    int64_t next = 0;
    for (int64_t s = 0; s < c.sequences; ++s) {
      for (int64_t b = 0; b * 64 < c.positions; ++b) {
        blocks[s].push_back(data.data() + next);
        next += block_bytes;
      }
      sequences.push_back({s * c.rows, c.rows, c.positions - c.rows, blocks[s]});
    }
    const SequenceRowsView rows = MustBe(table.Upload(*stream, sequences));
    const double all_us = Microseconds(*stream, [&] {
      return attention.Run(*stream, shape, kv_b, rows, table.places(), kv, q.as<float>(),
                           out.as<float>());
    });
    // The attention kernel alone, over the scratch as it is.
    AttentionBatch batch;
    batch.shape = shape;
    batch.kv = kv;
    batch.places = rows.places;
    batch.num_rows = rows.num_rows;
    batch.blocks = rows.blocks;
    batch.max_splits = AttentionSplits(c.positions - 1);
    batch.tensor_cores = AttendsWithTensorCores(shape, c.dtype, device.compute_capability());
    const DeviceBuffer queries = Buffer(*stream, batch.num_rows * 128 * 576 * 4);
    const DeviceBuffer scales = Buffer(*stream, batch.num_rows * 128 * 4);
    const DeviceBuffer sums = Buffer(*stream, batch.num_slots() * 512 * 4);
    const DeviceBuffer numbers = Buffer(*stream, batch.num_slots() * 8);
    batch.queries = queries.data();
    batch.score_scales = scales.as<float>();
    batch.sums = sums.as<float>();
    batch.maxima = numbers.as<float>();
    batch.totals = numbers.as<float>() + batch.num_slots();
    MustBe(LaunchLatentQueries(*stream, batch, kv_b, q.as<float>()));
    const double attend_us = Microseconds(*stream, [&] {
      return batch.tensor_cores ? LaunchAttendMma(*stream, batch) : LaunchAttendF32(*stream, batch);
    });
    double pairs = 0;  // of a row and a position
    for (int64_t r = 0; r < c.rows; ++r) pairs += static_cast<double>(c.positions - r);
    const double bytes = static_cast<double>(c.sequences * c.positions) *
                         static_cast<double>(DTypeBytes(c.dtype, 576));
    const double flops = static_cast<double>(c.sequences) * pairs * 128 * 2 * (576 + 512);
    const double gb_per_s = bytes / attend_us / 1e3;
    std::printf("%5s %9ld %9ld %7ld %9.1f %9.1f %9.0f %9.1f %9.1f\n",
                std::string(DTypeName(c.dtype)).c_str(), c.sequences, c.positions, c.rows, all_us,
                attend_us, gb_per_s, 100 * gb_per_s / ceiling, flops / attend_us / 1e6);
  }
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::Run(argc > 1 ? std::atoi(argv[1]) : 0);
  return 0;
}
