#ifndef CARAVAN_COORDINATOR_STORE_JOB_IDS_H_
#define CARAVAN_COORDINATOR_STORE_JOB_IDS_H_

// Job ids that no job ever had, on any coordinator of this store, without a write to the disk for
// each: they are reserved by the hundred thousand, and those left over at a restart are skipped.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "coordinator/store/job_store.h"

namespace caravan {

/// Not thread-safe. Borrows the store.
class JobIds {
 public:
  /// Errors: as JobStore.
  static absl::StatusOr<JobIds> Reserve(JobStore* store) {
    CARAVAN_ASSIGN_OR_RETURN(const uint64_t first, store->ReserveJobIds(kRange));
    return JobIds(store, first);
  }

  uint64_t first() const { return first_; }

  /// Reserves more where `next`, which is given next, comes near the end of what is reserved.
  /// Call it often enough that not half a range is given in between. Errors: as JobStore.
  absl::Status Extend(uint64_t next) {
    if (next + kRange / 2 < end_) return absl::OkStatus();
    CARAVAN_ASSIGN_OR_RETURN(const uint64_t first, store_->ReserveJobIds(kRange));
    end_ = first + kRange;
    return absl::OkStatus();
  }

 private:
  static constexpr uint64_t kRange = 100'000;

  JobIds(JobStore* store, uint64_t first) : store_(store), first_(first), end_(first + kRange) {}

  JobStore* store_;
  uint64_t first_;
  uint64_t end_;  // of what is reserved
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_STORE_JOB_IDS_H_
