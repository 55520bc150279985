#include "kernels/cuda/memory_rates.h"

#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

using MemoryRatesTest = CudaTest;

TEST_F(MemoryRatesTest, ReadsFarFasterThanItCopiesAndKeepsNothing) {
  const int64_t free_before = device().Memory()->free_bytes;
  const absl::StatusOr<CudaMemoryRates> rates = MeasureCudaMemory(device());
  ASSERT_TRUE(rates.ok()) << rates.status();
  // A card's memory is several times as fast as the fastest slot; none is as slow as an old disk.
  EXPECT_GT(rates->read, 1.5 * rates->to_card);
  EXPECT_GT(rates->read, 1.5 * rates->from_card);
  EXPECT_GT(rates->to_card, 2e8);
  EXPECT_GT(rates->from_card, 2e8);
  // No memory is read at 20 TB/s: caches were.
  EXPECT_LT(rates->read, 2e13);
  EXPECT_GE(device().Memory()->free_bytes, free_before - (int64_t{64} << 20));
}

TEST_F(MemoryRatesTest, ReadsTakeAnySize) {
  const DeviceBuffer data = ToDevice(std::vector<uint32_t>(1 << 16, 7));
  const DeviceBuffer sink = Poisoned<uint32_t>(1);
  for (const int64_t bytes : {int64_t{16}, int64_t{8208}, data.bytes()}) {
    EXPECT_TRUE(ReadDeviceMemory(stream(), data.data(), bytes, sink.data()).ok());
  }
  EXPECT_EQ(ToHost<uint32_t>(sink).front(), 0xffffffffu);
}

}  // namespace
}  // namespace caravan
