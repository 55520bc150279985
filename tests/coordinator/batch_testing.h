#ifndef CARAVAN_TESTS_COORDINATOR_BATCH_TESTING_H_
#define CARAVAN_TESTS_COORDINATOR_BATCH_TESTING_H_

// A book of batches on a disk of its own, with nobody who runs them: tests end lines by hand.

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/store/job_store.h"
#include "tests/support/temp_dir.h"

namespace caravan {

class TestBatchBook {
 public:
  TestBatchBook() : store_(Open(dir_.File("state.db"))), book_(store_.get()) {}

  BatchBook& book() { return book_; }

  /// A batch of one line with the custom_id "a", being validated.
  Batch AddBatch() {
    const auto file = book_.AddFile({"in.jsonl"}, "{\"custom_id\": \"a\"}\n");
    CARAVAN_CHECK(file.ok());
    const auto batch = book_.CreateBatch({file->id, "/v1/chat/completions", {}});
    CARAVAN_CHECK(batch.ok());
    return *batch;
  }

  /// Its lines are found right.
  void Begin(const std::string& id) {
    const int64_t number = Number(id);
    BatchLine line;
    line.number = 1;
    line.custom_id = "a";
    line.body = std::string("{}");  // GCC takes an assigned literal for uninitialized
    CARAVAN_CHECK(store_->AddLines(number, {line}).ok());
    CARAVAN_CHECK(store_->BeginBatch(number, 2).ok());
    book_.Changed(id);
  }

  /// Its one line comes to `text`, and so the batch to its end.
  void End(const std::string& id, bool failed, const std::string& text) {
    CARAVAN_CHECK(store_->Record({}, {{{Number(id), 1}, failed, text}}, 3).ok());
    book_.Changed(id);
  }

  /// Its lines are found wrong.
  void Fail(const std::string& id, const std::vector<BatchError>& errors) {
    CARAVAN_CHECK(store_->FailBatch(Number(id), errors, 2).ok());
    book_.Changed(id);
  }

 private:
  static std::unique_ptr<JobStore> Open(const std::string& path) {
    absl::StatusOr<std::unique_ptr<JobStore>> store = JobStore::Open(path);
    CARAVAN_CHECK(store.ok());
    return *std::move(store);
  }

  int64_t Number(const std::string& id) const {
    const auto open = store_->OpenBatches();
    CARAVAN_CHECK(open.ok());
    for (const OpenBatch& batch : *open) {
      if (batch.id == id) return batch.number;
    }
    CARAVAN_CHECK(false);
  }

  const TempDir dir_;
  const std::unique_ptr<JobStore> store_;
  BatchBook book_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_BATCH_TESTING_H_
