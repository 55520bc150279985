#ifndef CARAVAN_WORKER_FILES_PIECE_CHECK_H_
#define CARAVAN_WORKER_FILES_PIECE_CHECK_H_

// A piece of a packed file while it comes: how far it is, and whether what came is what the
// manifest says, as far as the piece by itself tells (worker/files/file_pieces.h).

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/pack/file_hash.h"
#include "model/pack/pack_manifest.h"
#include "worker/files/file_pieces.h"

namespace caravan {

/// Not thread-safe. Borrows the file.
class PieceCheck {
 public:
  PieceCheck(const PackedFile* file, const FilePiece& place)
      : file_(file), place_(place), at_(place.begin) {}

  const PackedFile& file() const { return *file_; }
  const FilePiece& place() const { return place_; }
  int64_t at() const { return at_; }  // where in the file the next byte belongs
  int64_t lacking() const { return place_.end - at_; }

  /// The next bytes. REQUIRES: no more than are lacking.
  /// Errors: DataLoss - an expert that they complete has another hash; the piece is of no use then,
  ///         and has_wrong_bytes().
  absl::Status Add(absl::Span<const std::byte> bytes);

  bool has_wrong_bytes() const { return has_wrong_bytes_; }
  /// Of what has come of a piece of the rest; of another piece it says nothing.
  std::string RestHash() const { return hash_.Digest(); }

 private:
  const PackedFile* file_;
  FilePiece place_;
  int64_t at_;
  FileHash hash_;  // of the expert that comes, or of the piece of the rest
  bool has_wrong_bytes_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_PIECE_CHECK_H_
