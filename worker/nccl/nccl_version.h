#ifndef CARAVAN_WORKER_NCCL_NCCL_VERSION_H_
#define CARAVAN_WORKER_NCCL_NCCL_VERSION_H_

// NCCL's versions, as codes: 22809 is 2.28.9 (NCCL_VERSION_CODE, as it is since 2.9).

#include <string>

namespace caravan {

/// The oldest that will do: communicators that do not block came with 2.14. Libraries younger and
/// older than the nccl.h of the build read of a communicator's configuration, which says its size,
/// what they know.
inline constexpr int kOldestNcclVersion = 21400;

/// "2.28.9".
std::string NcclVersionText(int version_code);

}  // namespace caravan

#endif  // CARAVAN_WORKER_NCCL_NCCL_VERSION_H_
