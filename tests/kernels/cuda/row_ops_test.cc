// What the tests of all backends leave out of the operations on rows: every format of a table, the
// exact bits of cached rows.

#include "kernels/cuda/row_ops.h"

#include <cmath>

#include "gmock/gmock.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

class CudaRowOpsTest : public CudaTest {};

TEST_F(CudaRowOpsTest, EmbedsTheRowsOfTablesOfEveryFormatAndLayout) {
  std::vector<DType> dtypes(std::begin(kWeightTypes), std::end(kWeightTypes));
  dtypes.insert(dtypes.end(), std::begin(kBlockTypes), std::end(kBlockTypes));
  const std::vector<TestedKind> kinds = TestedKinds();
  const std::unique_ptr<Backend> backend = kinds[0].make(1);
  for (const DType dtype : dtypes) {
    Rng rng(1);
    const int64_t cols = 512;
    const bool is_block = BlockOf(dtype).values > 1;
    const TestMatrix table = is_block ? TestMatrix::RandomBlocks(rng, dtype, 37, cols)
                                      : TestMatrix::Random(rng, dtype, 37, cols);
    std::vector<std::byte> tiles;
    const std::vector<int32_t> ids = {36, 0, 17, 17};
    std::vector<float> expected(ids.size() * cols), row_major(expected), tiled(expected);
    MakeReferenceBackend()->Embed(table.view(), ids, expected.data());
    backend->Embed(table.view(), ids, row_major.data());
    backend->Embed(table.Tiled(tiles), ids, tiled.data());
    EXPECT_EQ(row_major, expected) << DTypeName(dtype);
    EXPECT_EQ(tiled, expected) << DTypeName(dtype);
  }
}

TEST_F(CudaRowOpsTest, CachedRowsHaveTheBitsThatTheHostGivesTheSameValues) {
  const MlaShape shape = {.qk_rope_head_dim = 64, .kv_lora_rank = 512};
  const std::vector<float> inv_freq = TestInvFreq(64);
  constexpr int64_t kRows = 300;
  Rng rng(2);
  const std::vector<float> norm = RandomFloats(rng, 512, 2);
  std::vector<float> kv_a;
  for (int64_t row = 0; row < kRows; ++row) {
    // Blocks of zeros of either sign, of one value, of values far apart, and usual ones.
    for (int64_t block = 0; block < 18; ++block) {
      std::vector<float> values =
          row % 3 == 0 ? RandomWideFloats(rng, 32, 5) : RandomFloats(rng, 32, 3);
      const int64_t kind = RandomInt(rng, 0, 7);
      for (float& value : values) {
        if (kind == 0) value = rng() % 2 == 0 ? 0.0f : -0.0f;
        if (kind == 1) value = 0.75f;
        if (kind == 2) value = std::round(value * 4) / 4;
      }
      if (row == 7 && block == 3) values[5] = NAN;
      kv_a.insert(kv_a.end(), values.begin(), values.end());
    }
  }
  const std::unique_ptr<Backend> backend = TestedKinds()[0].make(1);
  const auto write = [&](DType dtype) {
    std::vector<std::byte> block(kRows * DTypeBytes(dtype, 576));
    std::byte* const blocks[] = {block.data()};
    const std::vector<SequenceRows> sequences = {{0, kRows, 0, blocks}};
    backend->WriteKv(shape, TestRope(inv_freq), norm.data(), 1e-6f, sequences, {dtype, kRows},
                     kv_a.data());
    return block;
  };
  const std::vector<std::byte> plain = write(DType::kF32);
  for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
    const std::vector<std::byte> rows = write(dtype);
    const int64_t row_bytes = DTypeBytes(dtype, 576);
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<float> values(576);
      std::memcpy(values.data(), plain.data() + row * 576 * 4, 576 * 4);
      std::vector<std::byte> expected(row_bytes);
      EncodeKvRow(dtype, values.data(), 576, expected.data());
      EXPECT_EQ(std::memcmp(rows.data() + row * row_bytes, expected.data(), row_bytes), 0)
          << DTypeName(dtype) << " row " << row;
    }
  }
}

TEST_F(CudaRowOpsTest, NormingToBlocksIsNormingAndThenQuantizing) {
  for (const int64_t width : {32, 416, 7168, 9216}) {
    Rng rng(3);
    constexpr int64_t kRows = 3;
    const DeviceBuffer x = ToDevice(RandomFloats(rng, kRows * width, 5));
    const DeviceBuffer weight = ToDevice(RandomFloats(rng, width));
    const DeviceBuffer normed = Poisoned<float>(kRows * width);
    const int64_t bytes = ActivationBytes(kRows, width);
    const DeviceBuffer expected = Poisoned<std::byte>(bytes), fused = Poisoned<std::byte>(bytes);
    ASSERT_TRUE(LaunchRmsNorm(stream(), x.as<float>(), kRows, width, weight.as<float>(), 1e-6f,
                              normed.as<float>())
                    .ok());
    ASSERT_TRUE(QuantizeRows(stream(), normed.as<float>(), kRows, width,
                             ActivationsAt(expected.data(), kRows, width))
                    .ok());
    ASSERT_TRUE(LaunchRmsNormBlocks(stream(), x.as<float>(), kRows, width, weight.as<float>(),
                                    1e-6f, ActivationsAt(fused.data(), kRows, width))
                    .ok());
    EXPECT_EQ(ToHost<std::byte>(fused), ToHost<std::byte>(expected)) << width;
  }
}

}  // namespace
}  // namespace caravan
