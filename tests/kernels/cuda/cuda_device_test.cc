#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <numeric>

#include "gmock/gmock.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_driver.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/row_ops.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

class CudaDeviceTest : public CudaTest {};

TEST_F(CudaDeviceTest, TellsWhatItIs) {
  EXPECT_EQ(device().ordinal(), 0);
  EXPECT_FALSE(device().name().empty());
  EXPECT_GE(device().compute_capability(), kMinComputeCapability);
  EXPECT_GT(device().num_multiprocessors(), 0);
  EXPECT_GE(device().max_shared_bytes(), 48 << 10);
  const absl::StatusOr<CudaMemoryInfo> memory = device().Memory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_GT(memory->free_bytes, 0);
  EXPECT_GE(memory->total_bytes, memory->free_bytes);
}

TEST_F(CudaDeviceTest, AnOrdinalThatIsNotThereIsRefusedByNumber) {
  EXPECT_EQ(CudaDevice::Open(-1).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = CudaDevice::Open(4096).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no cuda:4096"));
}

TEST(CudaDriverTest, OneThatIsTooOldIsToldWithBothVersions) {
  const absl::Status old = InsufficientDriver(11040, 12080);
  EXPECT_EQ(old.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(old.message(),
            "the driver is too old: it is made for CUDA 11.4, and this program was built with CUDA "
            "12.8");
  const absl::Status none = InsufficientDriver(0, 13000);
  EXPECT_EQ(none.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(none.message(),
            "there is no CUDA driver: this program was built with CUDA 13.0 and needs one for it");
}

TEST(CudaDriverTest, WhatIsMissingIsUnavailable) {
  const absl::Status status = CudaDevice::Open(0).status();
  if (status.ok()) GTEST_SKIP() << "nothing is missing";
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

TEST(CudaErrorTest, CodesTellWhatIsGoneForGoodFromWhatIsNot) {
  const auto code_of = [](cudaError_t error) { return CudaStatus(error, "f").code(); };
  EXPECT_EQ(code_of(cudaErrorNoDevice), absl::StatusCode::kUnavailable);
  EXPECT_EQ(code_of(cudaErrorInsufficientDriver), absl::StatusCode::kUnavailable);
  EXPECT_EQ(code_of(cudaErrorUnsupportedPtxVersion), absl::StatusCode::kUnavailable);
  EXPECT_EQ(code_of(cudaErrorMemoryAllocation), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code_of(cudaErrorIllegalAddress), absl::StatusCode::kInternal);
  EXPECT_EQ(code_of(cudaErrorECCUncorrectable), absl::StatusCode::kInternal);
  EXPECT_EQ(CudaStatus(cudaErrorIllegalAddress, "cudaMemcpyAsync(to, from)").message(),
            "cudaMemcpyAsync: an illegal memory access was encountered");
}

TEST(CudaSizesTest, AModelThatTheKernelsHaveNoRoomForIsRefusedByName) {
  const MlaShape r1 = {.num_heads = 128,
                       .qk_nope_head_dim = 128,
                       .qk_rope_head_dim = 64,
                       .v_head_dim = 128,
                       .kv_lora_rank = 512,
                       .softmax_scale = 1};
  const RouterShape router = {.n_routed_experts = 256, .num_experts_per_tok = 8};
  EXPECT_TRUE(CheckCudaSizes(r1, router, 129280).ok());
  MlaShape wide = r1;
  wide.kv_lora_rank = 1024;
  EXPECT_EQ(CheckCudaSizes(wide, router, 129280).message(),
            "the CUDA backend takes models of kv_lora_rank up to 512, not 1024");
  const RouterShape many = {.n_routed_experts = 4096, .num_experts_per_tok = 8};
  EXPECT_THAT(std::string(CheckCudaSizes(r1, many, 129280).message()),
              HasSubstr("n_routed_experts"));
  EXPECT_THAT(std::string(CheckCudaSizes(r1, router, 2000000).message()), HasSubstr("vocab_size"));
}

TEST_F(CudaDeviceTest, BytesComeBackAsTheyWent) {
  std::vector<int32_t> values(1000);
  std::iota(values.begin(), values.end(), -500);
  EXPECT_EQ(ToHost<int32_t>(ToDevice(values)), values);
}

TEST_F(CudaDeviceTest, MoreMemoryThanThereIsIsResourceExhausted) {
  const absl::Status status = DeviceBuffer::Create(device(), int64_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  // The device is of use afterwards, and nothing else seems to have failed of it.
  const absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Create(device(), 8);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_TRUE(LaunchAdd(stream(), buffer->as<float>(), 1, buffer->as<float>() + 1).ok());
}

}  // namespace
}  // namespace caravan
