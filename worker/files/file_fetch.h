#ifndef CARAVAN_WORKER_FILES_FILE_FETCH_H_
#define CARAVAN_WORKER_FILES_FILE_FETCH_H_

// Brings files of a packed model to a directory, from several sources at once, and goes on where an
// earlier life stopped. What comes from whom, and what is trusted, worker/files/piece_board.h
// decides.

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/pack/pack_manifest.h"
#include "worker/files/file_source.h"
#include "worker/files/piece_board.h"

namespace caravan {

struct FileFetchOptions {
  // Pieces that are being read: from each source, and from all, however many there are.
  int streams_per_source = 2;
  int max_streams = 16;
  // Between tries of a source that does not answer; after the third failure in a row, each
  // of another try, it is asked for nothing any more.
  absl::Duration retry_delay = absl::Seconds(1);
  /// Called now and then by the caller's thread with how many bytes of all files are there; false
  /// stops the fetch. Of a file that an earlier life brought, those count that were read back.
  std::function<bool(int64_t done, int64_t total)> progress = [](int64_t, int64_t) { return true; };
  std::stop_token stop;
};

/// Returns when all of `files` are whole in `directory`. Where they are, no source is asked.
/// Borrows the sources.
/// Errors: Unavailable - a piece is left that nobody can give now, whatever is wrong with those who
///         have it; DataLoss - all who have it have other bytes than the manifest says, or the disk
///         failed; ResourceExhausted - the disk is full; Cancelled - a stop, or by `progress`; as
///         PartialFile::Open. Each names the file.
absl::StatusOr<FileFetchResult> FetchFiles(const std::string& directory,
                                           const std::vector<PackedFile>& files,
                                           const std::vector<FileSource*>& sources,
                                           const FileFetchOptions& options);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_FILE_FETCH_H_
