#ifndef CARAVAN_WORKER_NCCL_NCCL_LIBRARY_H_
#define CARAVAN_WORKER_NCCL_NCCL_LIBRARY_H_

// NVIDIA's NCCL, which carries bytes between the memories of cards, within a machine and between
// machines. It is looked for when it is asked for and never linked, so that one binary serves boxes
// that have it and boxes that have not. A build that found no nccl.h has none to offer.

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace caravan {

/// What is called of the library (worker/nccl/nccl_functions.h).
struct NcclFunctions;

/// Immutable, so any thread may use it. The library stays loaded until the process ends, since
/// threads of its own may still run.
class NcclLibrary {
 public:
  /// `path`: the library's file, or a name for the dynamic linker to look for.
  /// Errors: Unavailable - it cannot be loaded (in the dynamic linker's words).
  ///         FailedPrecondition - it is no NCCL (names what it lacks), it is older than
  ///         kOldestNcclVersion, or of another major version than nccl.h (names both).
  ///         Unimplemented - this build has no NCCL.
  static absl::StatusOr<std::unique_ptr<NcclLibrary>> Load(
      const std::string& path = "libnccl.so.2");
  ~NcclLibrary();
  NcclLibrary(const NcclLibrary&) = delete;
  NcclLibrary& operator=(const NcclLibrary&) = delete;

  /// As in worker/nccl/nccl_version.h. All ranks of a communicator must have the same.
  int version() const { return version_; }

  const NcclFunctions& functions() const { return *functions_; }

 private:
  NcclLibrary(std::unique_ptr<const NcclFunctions> functions, int version);

  const std::unique_ptr<const NcclFunctions> functions_;
  const int version_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_NCCL_NCCL_LIBRARY_H_
