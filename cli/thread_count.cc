#include "cli/thread_count.h"

#include "base/status_macros.h"
#include "cluster/machine.h"

namespace caravan {

absl::StatusOr<int> ThreadCount(int asked) {
  if (asked > 0) return asked;
  CARAVAN_ASSIGN_OR_RETURN(const Machine machine, ProbeMachine());
  return machine.num_cores;
}

}  // namespace caravan
