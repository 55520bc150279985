// Backend::Repeat on a card: what a graph was made of may have changed when it is launched.

#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "base/check.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/memory.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

constexpr CudaBackendLimits kLimits = {
    .ffn = {.max_rows = 16, .max_chosen = 2, .hidden = 64, .expert_inter = 64, .dense_inter = 64},
    .max_cols = 64,
    .max_kv_blocks = 16,
    .attention_scratch_bytes = int64_t{8} << 20,
};
constexpr MlaShape kMla = {.num_heads = 2,
                           .qk_nope_head_dim = 16,
                           .qk_rope_head_dim = 8,
                           .v_head_dim = 16,
                           .kv_lora_rank = 32,
                           .softmax_scale = 0.2F};
constexpr KvLayout kKv = {.dtype = DType::kF32, .block_tokens = 4};
constexpr int kLayers = 2;

/// A cache of blocks with two layers each, and rows to write there.
class CudaRepeatTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    absl::StatusOr<std::unique_ptr<CudaBackend>> backend =
        CudaBackend::Open(device(), kLimits, int64_t{1} << 30);
    CARAVAN_CHECK(backend.ok());
    backend_ = *std::move(backend);
    const std::vector<float> inv_freq = TestInvFreq(kMla.qk_rope_head_dim);
    inv_freq_ = Placed(inv_freq);
    norm_ = Placed(std::vector<float>(kMla.kv_lora_rank, 1));
    row_ = Placed(std::vector<float>(kMla.kv_width(), 0));
    cache_ = *backend_->memory().Allocate(kBlocks * kLayers * kLayerBytes);
  }

  Array Placed(const std::vector<float>& values) {
    Array array = *AllocateValues<float>(backend_->memory(), std::ssize(values));
    CARAVAN_CHECK(backend_->memory().CopyIn(values.data(), array.bytes(), array.data()).ok());
    return array;
  }

  /// Writes the row of a token with this value to both layers of a block; returns what lies there
  /// then.
  std::vector<float> Write(float value, int64_t position, int block, bool repeats) {
    std::vector<float> values(kMla.kv_width());
    for (size_t i = 0; i < values.size(); ++i) values[i] = value + static_cast<float>(i);
    Memory& memory = backend_->memory();
    CARAVAN_CHECK(memory.CopyIn(values.data(), row_.bytes(), row_.data()).ok());
    std::array<std::byte*, kLayers> places;
    std::array<SequenceRows, kLayers> layers;
    for (int layer = 0; layer < kLayers; ++layer) {
      places[layer] = cache_.data() + (block * kLayers + layer) * kLayerBytes;
      layers[layer] = {0, 1, position, absl::MakeConstSpan(&places[layer], 1)};
    }
    const RopeTable rope = {
        absl::MakeConstSpan(inv_freq_.floats(), static_cast<size_t>(inv_freq_.num_floats())), 1};
    const auto write = [&] {
      for (const SequenceRows& rows : layers) {
        backend_->WriteKv(kMla, rope, norm_.floats(), 1e-6F, absl::MakeConstSpan(&rows, 1), kKv,
                          row_.floats());
      }
      return absl::OkStatus();
    };
    const RepeatKey key = {.part = 0, .num_rows = 1, .x = row_.data()};
    EXPECT_EQ(
        repeats ? backend_->Repeat(key, absl::MakeConstSpan(layers.data(), 1), write) : write(),
        absl::OkStatus());
    std::vector<float> written(kLayers * kLayerBytes / sizeof(float));
    EXPECT_EQ(memory.CopyOut(places[0], kLayers * kLayerBytes, written.data()), absl::OkStatus());
    EXPECT_EQ(memory.Clear(places[0], kLayers * kLayerBytes), absl::OkStatus());
    return written;
  }

  static constexpr int kBlocks = 3;
  static constexpr int64_t kLayerBytes = 4 * 40 * sizeof(float);

  std::unique_ptr<CudaBackend> backend_;
  Array inv_freq_;
  Array norm_;
  Array row_;
  Array cache_;
};

TEST_F(CudaRepeatTest, TakesTheSequencesAndValuesOfThisTime) {
  const float values[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const int64_t positions[] = {0, 1, 1, 1, 2, 3, 0, 0};
  const int blocks[] = {0, 0, 1, 2, 2, 1, 0, 2};
  for (size_t i = 0; i < std::size(values); ++i) {
    const std::vector<float> repeated = Write(values[i], positions[i], blocks[i], true);
    const std::vector<float> expected = Write(values[i], positions[i], blocks[i], false);
    EXPECT_EQ(repeated, expected) << i;
    const size_t row = static_cast<size_t>(positions[i] * kMla.kv_width());
    EXPECT_NE(expected[row + 1], 0) << i;
    EXPECT_EQ(expected[row + 1], expected[row + 1 + expected.size() / 2]) << i;
  }
}

}  // namespace
}  // namespace caravan
