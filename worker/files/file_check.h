#ifndef CARAVAN_WORKER_FILES_FILE_CHECK_H_
#define CARAVAN_WORKER_FILES_FILE_CHECK_H_

// Reads back a file all of whose pieces are there, and tells what of it is what the manifest says.

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "model/pack/pack_manifest.h"
#include "worker/files/partial_file.h"

namespace caravan {

struct FileCheck {
  bool is_right = false;             // as a whole
  std::vector<int64_t> bad_experts;  // ascending. None, and not right: the rest is wrong
};

/// `on_read` is called as the reading goes on, in all with every byte; false ends it.
/// Errors: DataLoss - the disk failed; Cancelled - by `on_read`.
absl::StatusOr<FileCheck> CheckFile(const PartialFile& file, const PackedFile& packed,
                                    absl::FunctionRef<bool(int64_t bytes)> on_read);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_FILE_CHECK_H_
