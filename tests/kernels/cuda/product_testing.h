#ifndef CARAVAN_TESTS_KERNELS_CUDA_PRODUCT_TESTING_H_
#define CARAVAN_TESTS_KERNELS_CUDA_PRODUCT_TESTING_H_

// What the tests of the device's products share: weights in its memory, and what the integer
// kernels make of activations.

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/matrix_product.h"
#include "kernels/cuda/product_launch.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {

class CudaProductTest : public CudaTest {
 protected:
  /// Copies a matrix to the device, in tiles; the test keeps it.
  Matrix Upload(const TestMatrix& matrix) {
    std::vector<std::byte> tiles;
    Matrix view = matrix.Tiled(tiles);
    view.data = Keep(ToDevice(tiles)).data();
    if (view.scale_inv != nullptr) {
      const std::vector<float> scales(view.scale_inv,
                                      view.scale_inv + Fp8Blocks(view.rows) * Fp8Blocks(view.cols));
      view.scale_inv = Keep(ToDevice(scales)).as<float>();
    }
    return view;
  }

  DeviceBuffer& Keep(DeviceBuffer buffer) {
    kept_.push_back(std::make_unique<DeviceBuffer>(std::move(buffer)));
    return *kept_.back();
  }

  /// w x for `num_rows` rows of x from `first_row` on, and one float of poison.
  std::vector<float> Multiply(const Matrix& w, const std::vector<float>& x, int64_t first_row,
                              int64_t num_rows) {
    const DeviceBuffer rows = ToDevice(std::vector<float>(
        x.begin() + first_row * w.cols, x.begin() + (first_row + num_rows) * w.cols));
    const DeviceBuffer out = Poisoned<float>(num_rows * w.rows + 1);
    const DeviceBuffer scratch = Poisoned<std::byte>(ActivationBytes(num_rows, w.cols));
    const absl::Status status =
        MultiplyFloats(stream(), w, rows.as<float>(), num_rows, scratch.data(), out.as<float>());
    EXPECT_TRUE(status.ok()) << status;
    return ToHost<float>(out);
  }

 private:
  std::vector<std::unique_ptr<DeviceBuffer>> kept_;
};

/// Random weights of any type.
inline TestMatrix RandomWeights(Rng& rng, DType dtype, int64_t rows, int64_t cols) {
  return BlockOf(dtype).values > 1 ? TestMatrix::RandomBlocks(rng, dtype, rows, cols)
                                   : TestMatrix::Random(rng, dtype, rows, cols);
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_KERNELS_CUDA_PRODUCT_TESTING_H_
