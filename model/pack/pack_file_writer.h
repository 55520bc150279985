#ifndef CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_
#define CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_

// Writes one file of a pack: in its place only when it is whole, and on the disk.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/pack/file_hash.h"

namespace caravan {

/// Used by one thread. Without Commit nothing is left behind. Errors of all: ResourceExhausted -
/// the disk is full; DataLoss - it failed. Each names the path.
class PackFileWriter {
 public:
  /// Writes into `path`.partial until Commit. Errors: also InvalidArgument - it cannot be made.
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
  /// Puts the file in its place; returns its hash. The last call.
  absl::StatusOr<std::string> Commit();

 private:
  PackFileWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  const std::string path_;
  int fd_;
  bool committed_ = false;
  int64_t bytes_ = 0;
  FileHash hash_;
};

/// Writes a small file in one go, over what was there. Errors: as PackFileWriter.
absl::Status WritePackFile(const std::string& path, absl::string_view text);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACK_FILE_WRITER_H_
