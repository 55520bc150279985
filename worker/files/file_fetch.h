#ifndef CARAVAN_WORKER_FILES_FILE_FETCH_H_
#define CARAVAN_WORKER_FILES_FILE_FETCH_H_

// Brings files of a packed model to a directory, from several sources at once, and goes on where an
// earlier life stopped.
//
// What is to be trusted is the manifest. A piece of experts is compared with their hashes as it
// comes; one that is wrong comes from another source, and the one that sent it is named. Of a
// file's rest (worker/files/file_pieces.h) the file's hash tells, when all is there, whether it is
// right, but not who sent what is wrong. So then the whole rest comes again, from one source alone,
// and from the next one, until the hash is right; comparing pieces then shows whose were wrong.

#include <cstdint>
#include <functional>
#include <map>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/pack/pack_manifest.h"
#include "worker/files/file_source.h"

namespace caravan {

struct FileFetchOptions {
  // Pieces under way: from each source, and from all. No more than 64 sources are asked, the first.
  int streams_per_source = 2;
  int max_streams = 16;
  // Between tries of a source that does not answer; the third failure in a row is its last.
  absl::Duration retry_delay = absl::Seconds(1);
  /// Called now and then by the caller's thread with how many bytes of all files are there; false
  /// stops the fetch. Of a file that an earlier life brought, those count that were read back.
  std::function<bool(int64_t done, int64_t total)> progress = [](int64_t, int64_t) { return true; };
  std::stop_token stop;
};

struct FileFetchResult {
  int files = 0;                              // that were not there as a whole
  int64_t bytes = 0;                          // that came
  int64_t kept_bytes = 0;                     // that were there
  std::map<std::string, int64_t> bytes_from;  // by source
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
