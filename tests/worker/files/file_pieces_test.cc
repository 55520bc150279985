#include "worker/files/file_pieces.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace caravan {
namespace {

PackedFile FileOf(int64_t head, int64_t count, int64_t stride, int64_t tail) {
  PackedFile file;
  file.bytes = head + count * stride + tail;
  if (count > 0) {
    file.experts.emplace();
    file.experts->offset = head;
    file.experts->count = count;
    file.experts->stride = stride;
  }
  return file;
}

TEST(FilePiecesTest, CoverEachFileWithoutGapsAndNeverCutAnExpert) {
  const int64_t mib = int64_t{1} << 20;
  for (const PackedFile& file :
       {FileOf(0, 0, 0, 0), FileOf(1, 0, 0, 0), FileOf(kPieceBytes, 0, 0, 0),
        FileOf(3 * kPieceBytes + 5, 0, 0, 0), FileOf(4096, 7, 4096, 0),
        FileOf(20 * mib, 256, 3 * mib, 100), FileOf(4096, 3, 24 * mib, kPieceBytes + 1),
        FileOf(0, 5, kPieceBytes, 0)}) {
    int64_t at = 0;
    int64_t experts = 0;
    for (const FilePiece& piece : SplitIntoPieces(file)) {
      EXPECT_EQ(piece.begin, at);
      EXPECT_GT(piece.end, piece.begin);
      EXPECT_TRUE(piece.end - piece.begin <= kPieceBytes || piece.num_experts == 1);
      if (!piece.is_rest()) {
        EXPECT_EQ(piece.first_expert, experts);
        EXPECT_EQ(piece.begin, file.experts->offset + experts * file.experts->stride);
        EXPECT_EQ(piece.end - piece.begin, piece.num_experts * file.experts->stride);
        experts += piece.num_experts;
      }
      at = piece.end;
    }
    EXPECT_EQ(at, file.bytes);
    EXPECT_EQ(experts, file.experts.has_value() ? file.experts->count : 0);
  }
}

TEST(FilePiecesTest, SmallExpertsTravelTogether) {
  const std::vector<FilePiece> pieces = SplitIntoPieces(FileOf(0, 20, kPieceBytes / 8, 0));
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0].num_experts, 8);
  EXPECT_EQ(pieces[2].num_experts, 4);
}

}  // namespace
}  // namespace caravan
