#include "kernels/cuda/cuda_graphs.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_scratch.h"
#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/row_ops.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

constexpr int64_t kCount = 1000;

class CudaGraphsTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    one_ = ToDevice(std::vector<float>(kCount, 1));
    sum_ = ToDevice(std::vector<float>(kCount, 0));
    graphs_ = std::make_unique<CudaGraphs>(stream());
  }

  float Sum() { return ToHost<float>(sum_).back(); }

  /// sum += one, `times` times.
  absl::Status Run(int64_t key, int times, bool repeats = true) {
    return graphs_->Run({key, 0, 0, 0}, [&]() -> absl::StatusOr<bool> {
      ++calls_;
      for (int i = 0; i < times; ++i) {
        CARAVAN_RETURN_IF_ERROR(LaunchAdd(stream(), one_.as<float>(), kCount, sum_.as<float>()));
      }
      return repeats;
    });
  }

  DeviceBuffer one_;
  DeviceBuffer sum_;
  std::unique_ptr<CudaGraphs> graphs_;
  int calls_ = 0;
};

TEST_F(CudaGraphsTest, IsCalledTwiceAndDoneEachTime) {
  for (int i = 0; i < 5; ++i) ASSERT_EQ(Run(1, 3), absl::OkStatus());
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(graphs_->num_graphs(), 1);
  EXPECT_EQ(Sum(), 15);
}

TEST_F(CudaGraphsTest, TakesWhatIsInMemoryThen) {
  for (int i = 0; i < 3; ++i) ASSERT_EQ(Run(1, 1), absl::OkStatus());
  const std::vector<float> ten(kCount, 10);
  ASSERT_EQ(CopyToDevice(stream(), ten.data(), one_.bytes(), one_.data()), absl::OkStatus());
  ASSERT_EQ(Run(1, 1), absl::OkStatus());
  EXPECT_EQ(Sum(), 13);
}

TEST_F(CudaGraphsTest, KeysAreApart) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(Run(1, 1), absl::OkStatus());
    ASSERT_EQ(Run(2, 100), absl::OkStatus());
  }
  EXPECT_EQ(graphs_->num_graphs(), 2);
  EXPECT_EQ(Sum(), 303);
}

TEST_F(CudaGraphsTest, WhatDoesNotRepeatIsCalledEachTime) {
  for (int i = 0; i < 4; ++i) ASSERT_EQ(Run(1, 1, false), absl::OkStatus());
  EXPECT_EQ(calls_, 4);
  EXPECT_EQ(graphs_->num_graphs(), 0);
  EXPECT_EQ(Sum(), 4);
}

TEST_F(CudaGraphsTest, TheLeastLatelyUsedMakesRoom) {
  constexpr int kThird = kMaxGraphNodes / 3;
  for (int64_t key = 0; key < 3; ++key) {
    for (int i = 0; i < 2; ++i) ASSERT_EQ(Run(key, kThird), absl::OkStatus());
  }
  ASSERT_EQ(Run(0, kThird), absl::OkStatus());
  EXPECT_EQ(graphs_->num_graphs(), 3);
  for (int i = 0; i < 2; ++i) ASSERT_EQ(Run(3, kThird), absl::OkStatus());
  EXPECT_EQ(graphs_->num_graphs(), 3);
  calls_ = 0;
  ASSERT_EQ(Run(0, kThird), absl::OkStatus());
  EXPECT_EQ(calls_, 0);
  ASSERT_EQ(Run(1, kThird), absl::OkStatus());
  EXPECT_EQ(calls_, 1);
  EXPECT_EQ(Sum(), 11 * kThird);
}

TEST_F(CudaGraphsTest, AFailureWhileItIsCapturedLeavesTheStreamOfUse) {
  ASSERT_EQ(Run(1, 1), absl::OkStatus());
  EXPECT_EQ(graphs_->Run({1, 0, 0, 0},
                         [&]() -> absl::StatusOr<bool> {
                           CARAVAN_RETURN_IF_ERROR(
                               LaunchAdd(stream(), one_.as<float>(), kCount, sum_.as<float>()));
                           return absl::InternalError("no more");
                         }),
            absl::InternalError("no more"));
  EXPECT_EQ(Sum(), 1);
  for (int i = 0; i < 2; ++i) ASSERT_EQ(Run(1, 1), absl::OkStatus());
  EXPECT_EQ(Sum(), 3);
}

TEST_F(CudaGraphsTest, TakeNoMoreMemoryThanIsPlannedFor) {
  ASSERT_EQ(Run(0, 1), absl::OkStatus());
  ASSERT_EQ(stream().Synchronize(), absl::OkStatus());
  const int64_t free_bytes = device().Memory()->free_bytes;
  constexpr int kGraphs = 32;
  for (int64_t key = 1; key <= kGraphs; ++key) {
    for (int i = 0; i < 3; ++i) ASSERT_EQ(Run(key, kMaxGraphNodes / kGraphs), absl::OkStatus());
  }
  ASSERT_EQ(stream().Synchronize(), absl::OkStatus());
  EXPECT_EQ(graphs_->num_graphs(), kGraphs);
  const int64_t taken = free_bytes - device().Memory()->free_bytes;
  RecordProperty("bytes", std::to_string(taken));
  EXPECT_LE(taken, kCudaGraphBytes);
}

}  // namespace
}  // namespace caravan
