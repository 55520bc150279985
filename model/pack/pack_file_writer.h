#ifndef CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_
#define CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_

// Writes one file of a pack: in its place only when it is whole, and on the disk. A few megabytes
// are written and hashed by a second thread while the next come together. They go past the page
// cache where the file system lets them: nobody reads them soon, so there they would only cost a
// copy, and drive out the source.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/buffer.h"
#include "base/named_thread.h"
#include "model/pack/file_hash.h"

namespace caravan {

/// Used by one thread. Without Commit nothing is left behind. Errors of all: ResourceExhausted -
/// the disk is full; DataLoss - it failed. Each names the path, and may come a few calls late.
class PackFileWriter {
 public:
  /// Writes into `path`.partial until Commit. Errors: also InvalidArgument - it cannot be made, or
  /// `path` is empty or a directory.
  static absl::StatusOr<std::unique_ptr<PackFileWriter>> Create(const std::string& path);
  ~PackFileWriter();
  PackFileWriter(const PackFileWriter&) = delete;
  PackFileWriter& operator=(const PackFileWriter&) = delete;

  /// Removes what a killed process left of `path`, if anything. REQUIRES: nobody writes it.
  static void RemovePartial(const std::string& path);

  int64_t bytes() const { return bytes_; }

  absl::Status Write(absl::Span<const std::byte> bytes);
  /// Zeros up to `offset`. REQUIRES: offset >= bytes().
  absl::Status PadTo(int64_t offset);
  /// A part of the file with a hash of its own begins here.
  void BeginPart() { part_hash_ = FileHash(); }
  /// The hash of what was written since BeginPart, or since the file's begin.
  std::string PartHash() const { return part_hash_.Digest(); }
  /// Puts the file in its place; returns its hash. The last call.
  absl::StatusOr<std::string> Commit();

 private:
  PackFileWriter(std::string path, int fd, bool direct, Buffer filling, Buffer leaving)
      : path_(std::move(path)),
        fd_(fd),
        direct_(direct),
        filling_(std::move(filling)),
        leaving_(std::move(leaving)) {}

  /// Waits for what is being written, and begins to write what has come together.
  absl::Status Flush();

  const std::string path_;
  int fd_;
  const bool direct_;  // what is written is a multiple of a block: the last one is filled up
  bool committed_ = false;
  int64_t bytes_ = 0;
  FileHash part_hash_;
  Buffer filling_;
  int64_t filled_ = 0;  // bytes of it
  // Of the thread while it runs.
  Buffer leaving_;
  FileHash hash_;
  absl::Status written_;
  std::optional<NamedThread> writing_;  // last: it uses the above
};

/// Writes a small file in one go, over what was there. Errors: as PackFileWriter.
absl::Status WritePackFile(const std::string& path, absl::string_view text);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_
