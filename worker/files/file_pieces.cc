#include "worker/files/file_pieces.h"

#include <algorithm>

namespace caravan {
namespace {

void AddRest(int64_t begin, int64_t end, std::vector<FilePiece>& pieces) {
  for (int64_t at = begin; at < end; at += kPieceBytes) {
    pieces.push_back({at, std::min(end, at + kPieceBytes)});
  }
}

}  // namespace

std::vector<FilePiece> SplitIntoPieces(const PackedFile& file) {
  std::vector<FilePiece> pieces;
  if (!file.experts.has_value()) {
    AddRest(0, file.bytes, pieces);
    return pieces;
  }
  const PackedExperts& experts = *file.experts;
  AddRest(0, experts.offset, pieces);
  const int64_t at_a_time = std::max<int64_t>(1, kPieceBytes / experts.stride);
  for (int64_t e = 0; e < experts.count; e += at_a_time) {
    const int64_t count = std::min(at_a_time, experts.count - e);
    const int64_t begin = experts.offset + e * experts.stride;
    pieces.push_back({begin, begin + count * experts.stride, e, count});
  }
  AddRest(experts.offset + experts.count * experts.stride, file.bytes, pieces);
  return pieces;
}

}  // namespace caravan
