#include "kernels/tiled/tile_layout.h"

#include <set>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;

std::vector<DType> AllTypes() {
  std::vector<DType> types(std::begin(kWeightTypes), std::end(kWeightTypes));
  types.insert(types.end(), std::begin(kBlockTypes), std::end(kBlockTypes));
  return types;
}

std::vector<std::byte> RandomBytes(Rng& rng, int64_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng());
  return bytes;
}

TEST(TileLayoutTest, ComesBackAsItWasForRandomBytesOfEveryType) {
  for (const DType dtype : AllTypes()) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 0, 50);
      const int64_t cols = RandomInt(rng, 0, 9) * BlockOf(dtype).values;
      const std::vector<std::byte> before = RandomBytes(rng, rows * DTypeBytes(dtype, cols));
      std::vector<std::byte> tiled(TiledBytes(dtype, rows, cols));
      TileMatrix(dtype, rows, cols, before.data(), tiled.data());
      std::vector<std::byte> after(before.size());
      UntileMatrix(dtype, rows, cols, tiled.data(), after.data());
      ASSERT_EQ(after, before) << DTypeName(dtype) << " seed " << seed;
    }
  }
}

TEST(TileLayoutTest, FieldsCoverEachBlockOnce) {
  for (const DType dtype : AllTypes()) {
    std::vector<int> times(BlockOf(dtype).bytes);
    for (const TileField& field : TileFieldsOf(dtype)) {
      EXPECT_EQ(field.bytes % field.unit, 0);
      for (int64_t i = 0; i < field.bytes; ++i) ++times.at(field.offset + i);
    }
    EXPECT_THAT(times, Each(1)) << DTypeName(dtype);
  }
}

TEST(TileLayoutTest, TakesAsManyBytesAsWholeTilesOfRows) {
  EXPECT_EQ(TiledBytes(DType::kQ8_0, 32, 64), 32 * 68);
  EXPECT_EQ(TiledBytes(DType::kQ8_0, 33, 64), 48 * 68);
  EXPECT_EQ(TiledBytes(DType::kBF16, 1, 3), 16 * 6);
  EXPECT_EQ(TiledBytes(DType::kQ4_K, 0, 256), 0);
}

TEST(TileLayoutTest, PutsQ8_0WhereTheFormatSays) {
  // 17 rows of two blocks; byte 0 and 1 of a block are its d, byte 2 + k its code k.
  Rng rng(1);
  const std::vector<std::byte> rows = RandomBytes(rng, 17 * 68);
  std::vector<std::byte> tiled(TiledBytes(DType::kQ8_0, 17, 64));
  TileMatrix(DType::kQ8_0, 17, 64, rows.data(), tiled.data());
  for (int row = 0; row < 17; ++row) {
    for (int block = 0; block < 2; ++block) {
      const std::byte* from = rows.data() + row * 68 + block * 34;
      const std::byte* to = tiled.data() + row / 16 * 1088 + block * 544;
      EXPECT_EQ(to[row % 16 * 2], from[0]);
      EXPECT_EQ(to[row % 16 * 2 + 1], from[1]);
      for (int k = 0; k < 32; ++k) {
        EXPECT_EQ(to[32 + k / 4 * 64 + row % 16 * 4 + k % 4], from[2 + k]) << row << " " << k;
      }
    }
  }
}

TEST(TileLayoutTest, PutsBF16ColumnByColumn) {
  Rng rng(2);
  const std::vector<std::byte> rows = RandomBytes(rng, 16 * 3 * 2);
  std::vector<std::byte> tiled(rows.size());
  TileMatrix(DType::kBF16, 16, 3, rows.data(), tiled.data());
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 3; ++k) {
      EXPECT_EQ(tiled[k * 32 + row * 2], rows[row * 6 + k * 2]);
      EXPECT_EQ(tiled[k * 32 + row * 2 + 1], rows[row * 6 + k * 2 + 1]);
    }
  }
}

TEST(TileLayoutTest, FillsTheLastTileWithZeros) {
  for (const DType dtype : AllTypes()) {
    const int64_t cols = BlockOf(dtype).values;
    const std::vector<std::byte> row(DTypeBytes(dtype, cols), std::byte{0xff});
    std::vector<std::byte> tiled(TiledBytes(dtype, 1, cols), std::byte{0x77});
    TileMatrix(dtype, 1, cols, row.data(), tiled.data());
    EXPECT_EQ(std::count(tiled.begin(), tiled.end(), std::byte{0xff}), std::ssize(row));
    EXPECT_EQ(std::count(tiled.begin(), tiled.end(), std::byte{0}), 15 * std::ssize(row));
  }
}

TEST(TileLayoutTest, GivesPiecesOfARow) {
  for (const DType dtype : AllTypes()) {
    Rng rng(3);
    const int64_t step = BlockOf(dtype).values, cols = 7 * step;
    const int64_t row_bytes = DTypeBytes(dtype, cols);
    const std::vector<std::byte> rows = RandomBytes(rng, 21 * row_bytes);
    std::vector<std::byte> tiled(TiledBytes(dtype, 21, cols));
    TileMatrix(dtype, 21, cols, rows.data(), tiled.data());
    const Matrix matrix = {.data = tiled.data(),
                           .dtype = dtype,
                           .rows = 21,
                           .cols = cols,
                           .layout = MatrixLayout::kTiled16};
    std::vector<std::byte> piece(DTypeBytes(dtype, 3 * step));
    UntileRow(matrix, 18, 2 * step, 3 * step, piece.data());
    const std::byte* expected = rows.data() + 18 * row_bytes + DTypeBytes(dtype, 2 * step);
    EXPECT_THAT(piece, ElementsAreArray(expected, piece.size())) << DTypeName(dtype);
  }
}

}  // namespace
}  // namespace caravan
