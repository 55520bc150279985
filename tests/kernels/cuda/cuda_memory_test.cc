// A backend's memory: its budget, its order with the backend's work, and copies beside that.

#include <numeric>
#include <string>

#include "base/check.h"
#include "gmock/gmock.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/memory.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr CudaBackendLimits kLimits = {
    .ffn =
        {.max_rows = 16, .max_chosen = 2, .hidden = 256, .expert_inter = 256, .dense_inter = 256},
    .max_cols = 256,
    .max_kv_blocks = 16,
    .attention_scratch_bytes = 8 * kMiB,
};

class CudaMemoryTest : public CudaTest {
 protected:
  std::unique_ptr<CudaBackend> MustOpen(int64_t budget_bytes) {
    absl::StatusOr<std::unique_ptr<CudaBackend>> backend =
        CudaBackend::Open(device(), kLimits, budget_bytes);
    CARAVAN_CHECK(backend.ok());
    return *std::move(backend);
  }
};

TEST_F(CudaMemoryTest, TakesNoMoreThanItsBudget) {
  const int64_t scratch = CudaScratchBytes(kLimits);
  const int64_t free_before = device().Memory()->free_bytes;
  const std::unique_ptr<CudaBackend> backend = MustOpen(scratch + 100 * kMiB);
  Memory& memory = backend->memory();
  absl::StatusOr<Array> most = memory.Allocate(90 * kMiB);
  ASSERT_TRUE(most.ok()) << most.status();
  const absl::Status more = memory.Allocate(11 * kMiB).status();
  EXPECT_EQ(more.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(more.message()), HasSubstr("11.0 MiB do not fit the budget of 100 MiB"));
  EXPECT_TRUE(memory.Allocate(10 * kMiB).ok());
  // The driver rounds up to 2 MiB each.
  EXPECT_LE(free_before - device().Memory()->free_bytes, scratch + 100 * kMiB + 16 * 2 * kMiB);
  *most = Array();
  EXPECT_TRUE(memory.Allocate(100 * kMiB).ok());
}

TEST_F(CudaMemoryTest, ABudgetBelowTheScratchIsRefused) {
  const absl::Status status =
      CudaBackend::Open(device(), kLimits, CudaScratchBytes(kLimits) - 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of scratch for steps"));
}

TEST_F(CudaMemoryTest, ComesZeroedAndCopiesInTheBackendsOrder) {
  const std::unique_ptr<CudaBackend> backend = MustOpen(1024 * kMiB);
  Memory& memory = backend->memory();
  EXPECT_FALSE(memory.is_host());
  const Array x = *AllocateValues<float>(memory, 1000);
  const Array y = *AllocateValues<float>(memory, 1000);
  std::vector<float> values(1000);
  std::vector<float> copy;
  EXPECT_THAT(*OnHost(memory, y.as<const float>(), 1000, copy), ::testing::Each(0.0f));
  std::iota(values.begin(), values.end(), 1.0f);
  ASSERT_TRUE(memory.CopyIn(values.data(), 4000, x.data()).ok());
  backend->Add(x.floats(), 1000, y.floats());
  backend->Add(x.floats(), 1000, y.floats());
  ASSERT_TRUE(memory.Copy(y.data(), 4000, x.data()).ok());
  ASSERT_TRUE(memory.Clear(y.data(), 2000).ok());
  for (float& value : values) value *= 2;
  EXPECT_THAT(*OnHost(memory, x.as<const float>(), 1000, copy),
              ::testing::ElementsAreArray(values));
  std::fill_n(values.begin(), 500, 0.0f);
  EXPECT_THAT(*OnHost(memory, y.as<const float>(), 1000, copy),
              ::testing::ElementsAreArray(values));
}

TEST_F(CudaMemoryTest, CopiesBesideTheWorkKeepTheOrderThatIsAsked) {
  const std::unique_ptr<CudaBackend> backend = MustOpen(1024 * kMiB);
  Memory& memory = backend->memory();
  const auto copies = *memory.MakeCopyQueue();
  constexpr int64_t kCount = 4 << 20;
  std::vector<float> host(kCount, 1.0f);
  ASSERT_TRUE(copies->Pin(reinterpret_cast<std::byte*>(host.data()), 4 * kCount).ok());
  const Array to = *AllocateValues<float>(memory, kCount);
  const Array sum = *AllocateValues<float>(memory, kCount);
  std::vector<float> copy;
  for (int round = 1; round <= 20; ++round) {
    ASSERT_TRUE(
        copies->Begin(reinterpret_cast<const std::byte*>(host.data()), 4 * kCount, to.data()).ok());
    ASSERT_TRUE(copies->Precede().ok());
    backend->Add(to.floats(), kCount, sum.floats());
    ASSERT_TRUE(copies->Follow().ok());
    ASSERT_TRUE(copies->Wait().ok());
    // The next copy is of other values, and waits until these were added.
    std::fill(host.begin(), host.end(), static_cast<float>(round + 1));
    const float expected = static_cast<float>(round * (round + 1)) / 2;
    if (round % 5 != 0) continue;
    EXPECT_THAT(*OnHost(memory, sum.as<const float>(), kCount, copy), ::testing::Each(expected));
  }
}

}  // namespace
}  // namespace caravan
