#ifndef CARAVAN_CLI_THREAD_COUNT_H_
#define CARAVAN_CLI_THREAD_COUNT_H_

#include "absl/status/statusor.h"

namespace caravan {

/// What --threads asks for: `asked` threads, or for 0 one for each core that this process may use.
/// Errors: as ProbeMachine.
absl::StatusOr<int> ThreadCount(int asked);

}  // namespace caravan

#endif  // CARAVAN_CLI_THREAD_COUNT_H_
