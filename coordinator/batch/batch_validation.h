#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_VALIDATION_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_VALIDATION_H_

// Brings a new batch's lines from its file into the store, or finds what is wrong with them. A part
// at a time, so that whoever runs other batches meanwhile is not held up.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/batch/batch_input.h"
#include "coordinator/store/job_store.h"

namespace caravan {

/// Not thread-safe. Borrows the store. One that was not finished is begun anew.
class BatchValidation {
 public:
  BatchValidation(JobStore* store, const OpenBatch& batch)
      : store_(store), batch_(batch), reader_(store, batch.input_file_id) {}

  int64_t batch() const { return batch_.number; }

  /// Reads on. True: the batch is kInProgress or kFailed now.
  /// Errors: as JobStore; this object is of no more use then.
  absl::StatusOr<bool> Step();

 private:
  absl::Status Finish();

  JobStore* const store_;
  const OpenBatch batch_;
  LineReader reader_;
  bool cleared_ = false;  // of what an earlier validation has left
  int64_t num_lines_ = 0;
  std::vector<BatchError> errors_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_VALIDATION_H_
