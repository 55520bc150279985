// OpenCard where there is CUDA.

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cluster/pipeline_plan.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/memory_rates.h"
#include "model/step_memory.h"
#include "worker/compute_device.h"
#include "worker/nccl/nccl_transport.h"

namespace caravan {
namespace {

class CudaCard : public ComputeDevice {
 public:
  CudaCard(CudaDevice device, int64_t memory_bytes, const CpuOptions& cpu)
      : device_(std::move(device)), memory_bytes_(memory_bytes), cpu_(cpu) {}

  std::string Name() const override { return device_.Title(); }
  int64_t memory_budget_bytes() const override { return memory_bytes_; }

  absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig& config,
                                                       int64_t max_rows) const override {
    CARAVAN_RETURN_IF_ERROR(CheckCudaSizes(config.Mla(), config.router, config.vocab_size));
    return CudaBackend::Open(device_, CudaLimits(config, max_rows, kKvBlockTokens), memory_bytes_);
  }

  absl::StatusOr<std::unique_ptr<Backend>> MakeCpu() const override { return MakeCpuBackend(cpu_); }
  // Whatever is asked of a card that failed for good fails of the same.
  absl::Status Check() const override { return device_.Memory().status(); }
  absl::StatusOr<CardMemory> MeasureMemory() const override {
    CARAVAN_ASSIGN_OR_RETURN(const CudaMemoryInfo memory, device_.Memory());
    CARAVAN_ASSIGN_OR_RETURN(const CudaMemoryRates rates, MeasureCudaMemory(device_));
    return CardMemory{memory.total_bytes, rates.read, rates.to_card, rates.from_card};
  }
  absl::StatusOr<std::unique_ptr<CardTransport>> OpenCardTransport() const override {
    return OpenNcclTransport(device_);
  }

 private:
  const CudaDevice device_;
  const int64_t memory_bytes_;
  const CpuOptions cpu_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenCard(int ordinal, const DeviceOptions& options) {
  CARAVAN_ASSIGN_OR_RETURN(CudaDevice device, CudaDevice::Open(ordinal));
  CARAVAN_ASSIGN_OR_RETURN(const CudaMemoryInfo memory, device.Memory());
  const std::string has = absl::StrCat(device.Title(), " has ", FormatByteSize(memory.free_bytes),
                                       " free of ", FormatByteSize(memory.total_bytes));
  int64_t bytes = options.memory_bytes;
  if (bytes > memory.free_bytes) return absl::InvalidArgumentError(has);
  if (bytes == 0) bytes = memory.free_bytes - kCardReserveBytes;
  if (bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(has, ", of which ",
                                                   FormatByteSize(kCardReserveBytes),
                                                   " are left alone unless --vram says otherwise"));
  }
  return std::make_unique<CudaCard>(std::move(device), bytes / options.sharers, options.cpu);
}

}  // namespace caravan
