#ifndef CARAVAN_WORKER_NCCL_NCCL_FUNCTIONS_H_
#define CARAVAN_WORKER_NCCL_NCCL_FUNCTIONS_H_

// What is called of NCCL, and what its results mean. For the sources of worker/nccl alone, where
// the build found nccl.h.

#include <nccl.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace caravan {

struct NcclFunctions {
  decltype(&::ncclGetVersion) get_version = nullptr;
  decltype(&::ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&::ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&::ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&::ncclCommFinalize) comm_finalize = nullptr;
  decltype(&::ncclCommDestroy) comm_destroy = nullptr;
  decltype(&::ncclCommAbort) comm_abort = nullptr;
  decltype(&::ncclGroupStart) group_start = nullptr;
  decltype(&::ncclGroupEnd) group_end = nullptr;
  decltype(&::ncclSend) send = nullptr;
  decltype(&::ncclRecv) recv = nullptr;
  decltype(&::ncclGetErrorString) get_error_string = nullptr;
  decltype(&::ncclGetLastError) get_last_error = nullptr;
};

/// What a call came to, in NCCL's own words. OK for ncclInProgress, too: the call goes on by
/// itself.
/// Unavailable - a peer or the network is gone; FailedPrecondition - the ranks do not fit together
/// (two on one card, different versions); Internal - all else.
absl::Status NcclStatus(const NcclFunctions& nccl, ncclResult_t result, absl::string_view call);

}  // namespace caravan

#endif  // CARAVAN_WORKER_NCCL_NCCL_FUNCTIONS_H_
