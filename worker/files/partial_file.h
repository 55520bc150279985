#ifndef CARAVAN_WORKER_FILES_PARTIAL_FILE_H_
#define CARAVAN_WORKER_FILES_PARTIAL_FILE_H_

// A file whose bytes come in any order, perhaps over several lives of the process. It lies beside
// its place as NAME.part, with NAME.have, which says what is there (docs/state.md), until it is
// whole.
//
// NAME.have is not synced, and need not be: a kill of the process loses nothing that was written,
// and what a loss of power made of either file the hashes show when all is said to be there.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/mutex.h"
#include "base/open_file.h"

namespace caravan {

inline constexpr char kPartSuffix[] = ".part";
inline constexpr char kHaveSuffix[] = ".have";

/// Thread-safe.
class PartialFile {
 public:
  /// Makes `path`.part, with room on the disk for `bytes`, or goes on with the one that is there;
  /// one of another size begins anew.
  /// Errors: ResourceExhausted - the disk has no such room; InvalidArgument, PermissionDenied,
  ///         DataLoss - it takes no file there. Each names the path.
  static absl::StatusOr<std::unique_ptr<PartialFile>> Open(const std::string& path, int64_t bytes);

  /// Whether all of [begin, end) was recorded.
  bool Has(int64_t begin, int64_t end) const;

  /// Errors: ResourceExhausted - the disk is full; DataLoss - it failed. Each names the path.
  absl::Status Write(int64_t offset, absl::Span<const std::byte> bytes);

  /// [begin, end) has been written, or is wrong after all and is to come again. For this life and
  /// the next. Errors: as Write.
  absl::Status Record(int64_t begin, int64_t end) { return Note("have", begin, end); }
  absl::Status Forget(int64_t begin, int64_t end) { return Note("lack", begin, end); }

  /// Errors: DataLoss - the disk failed; names the path.
  absl::Status Read(int64_t offset, absl::Span<std::byte> out) const;

  /// All is there and right: puts the file in its place, where a loss of power does not undo it.
  /// The last call. Errors: as Write.
  absl::Status Finish();

  const std::string& path() const { return path_; }

 private:
  PartialFile(std::string path, FileDescriptor data, FileDescriptor have)
      : path_(std::move(path)), data_(std::move(data)), have_(std::move(have)) {}
  absl::Status Note(absl::string_view what, int64_t begin, int64_t end);
  /// What an earlier life noted, up to a line that makes no sense.
  void Replay(absl::string_view notes, int64_t bytes);
  void ApplyLocked(bool have, int64_t begin, int64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  const FileDescriptor data_;
  const FileDescriptor have_;  // written by one append a note

  mutable Mutex mu_;
  // Disjoint and apart from each other: begin, end.
  std::map<int64_t, int64_t> ranges_ ABSL_GUARDED_BY(mu_);
};

/// Makes of a whole file one that comes in pieces and has them all, so that it counts as whole
/// again only after its bytes were compared. OK where there is none. Errors: DataLoss - the disk
/// failed; names the path.
absl::Status DoubtFile(const std::string& path);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_PARTIAL_FILE_H_
