#ifndef CARAVAN_WORKER_FILES_FILE_PIECES_H_
#define CARAVAN_WORKER_FILES_FILE_PIECES_H_

// What a packed file is fetched in.
//
// The manifest has a hash of each routed expert and one of the whole file. So a piece of whole
// experts is checked by itself as it comes; of all else, the file's *rest*, the file's hash tells
// when everything is there.

#include <cstdint>
#include <vector>

#include "model/pack/pack_manifest.h"

namespace caravan {

/// Pieces are about this large: enough that asking costs nothing beside them.
inline constexpr int64_t kPieceBytes = int64_t{8} << 20;

struct FilePiece {
  int64_t begin = 0;  // bytes [begin, end) of the file
  int64_t end = 0;
  int64_t first_expert = 0;
  int64_t num_experts = 0;  // 0: of the rest

  bool is_rest() const { return num_experts == 0; }
};

/// In ascending order, together the whole file. One larger than kPieceBytes is one expert.
std::vector<FilePiece> SplitIntoPieces(const PackedFile& file);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_FILE_PIECES_H_
