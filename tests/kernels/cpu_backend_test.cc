#include "kernels/cpu/cpu_backend.h"

#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

TEST(CpuBackendTest, RefusesAnImpossibleNumberOfThreads) {
  for (const int num_threads : {-1, 0, 1025}) {
    EXPECT_EQ(MakeCpuBackend({.num_threads = num_threads}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(CpuBackendTest, SaysWhatItIs) {
  EXPECT_EQ(CpuBackendFor(CpuIsa::kPortable, 1)->Name(), "cpu (portable, 1 thread)");
  EXPECT_EQ(CpuBackendFor(CpuIsa::kPortable, 3)->Name(), "cpu (portable, 3 threads)");
  EXPECT_EQ(MakeReferenceBackend()->Name(), "reference");
}

}  // namespace
}  // namespace caravan
