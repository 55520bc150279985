// The batches of JobStore.

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "coordinator/random_id.h"
#include "coordinator/store/job_store.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kSelectBatches[] =
    "SELECT id, endpoint, input_file_id, output_file_id, error_file_id, metadata, status, errors, "
    "total, completed, failed, created_at, in_progress_at, finalizing_at, completed_at, failed_at, "
    "cancelling_at, cancelled_at FROM batches ";

absl::StatusOr<BatchStatus> ParseBatchStatus(const std::string& name) {
  for (const BatchStatus status :
       {BatchStatus::kValidating, BatchStatus::kFailed, BatchStatus::kInProgress,
        BatchStatus::kCompleted, BatchStatus::kCancelling, BatchStatus::kCancelled}) {
    if (name == BatchStatusName(status)) return status;
  }
  return absl::DataLossError(absl::StrCat("a batch of the unknown status \"", name, "\""));
}

std::string ErrorsText(const std::vector<BatchError>& errors) {
  json list = json::array();
  for (const BatchError& error : errors) {
    json& entry = list.emplace_back(json{{"code", error.code}, {"message", error.message}});
    if (error.param.has_value()) entry["param"] = *error.param;
    if (error.line.has_value()) entry["line"] = *error.line;
  }
  return list.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<std::vector<BatchError>> ParseErrors(const std::string& text) {
  CARAVAN_ASSIGN_OR_RETURN(const json list, ParseJson(text, "a batch's errors"));
  std::vector<BatchError> errors;
  for (const json& entry : list) {
    CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(entry, "a batch's error"));
    BatchError& error = errors.emplace_back();
    CARAVAN_ASSIGN_OR_RETURN(error.code, fields.String("code"));
    CARAVAN_ASSIGN_OR_RETURN(error.message, fields.String("message"));
    if (fields.Has("param")) {
      CARAVAN_ASSIGN_OR_RETURN(error.param, fields.String("param"));
    }
    if (fields.Has("line")) {
      CARAVAN_ASSIGN_OR_RETURN(error.line, fields.Int("line", 1, INT64_MAX));
    }
  }
  return errors;
}

absl::StatusOr<std::map<std::string, std::string>> ParseMetadata(const std::string& text) {
  CARAVAN_ASSIGN_OR_RETURN(const json object, ParseJson(text, "a batch's metadata"));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(object, "a batch's metadata"));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    CARAVAN_ASSIGN_OR_RETURN(metadata[key], fields.String(key));
  }
  return metadata;
}

absl::StatusOr<Batch> ReadBatch(const Statement& row) {
  Batch batch;
  batch.id = row.Text(0);
  batch.endpoint = row.Text(1);
  batch.input_file_id = row.Text(2);
  CARAVAN_ASSIGN_OR_RETURN(batch.metadata, ParseMetadata(row.Text(5)));
  CARAVAN_ASSIGN_OR_RETURN(batch.status, ParseBatchStatus(row.Text(6)));
  CARAVAN_ASSIGN_OR_RETURN(batch.errors, ParseErrors(row.Text(7)));
  // Until then they grow, and are nobody's to read.
  if (HasEnded(batch.status)) {
    batch.output_file_id = row.OptionalText(3);
    batch.error_file_id = row.OptionalText(4);
  }
  batch.counts = {row.Int(8), row.Int(9), row.Int(10)};
  batch.created_at = row.Int(11);
  batch.in_progress_at = row.OptionalInt(12);
  batch.finalizing_at = row.OptionalInt(13);
  batch.completed_at = row.OptionalInt(14);
  batch.failed_at = row.OptionalInt(15);
  batch.cancelling_at = row.OptionalInt(16);
  batch.cancelled_at = row.OptionalInt(17);
  return batch;
}

}  // namespace

absl::Status JobStore::AddBatch(const Batch& batch) {
  MutexLock lock(&mu_);
  return database_
      ->Run(
          "INSERT INTO batches (id, endpoint, input_file_id, metadata, status, errors, total, "
          "completed, failed, created_at) VALUES (?, ?, ?, ?, 'validating', '[]', 0, 0, 0, ?)",
          batch.id, batch.endpoint, batch.input_file_id, json(batch.metadata).dump(),
          batch.created_at)
      .status();
}

absl::StatusOr<Batch> JobStore::GetBatch(const std::string& id) const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Statement row,
                           database_->Query(absl::StrCat(kSelectBatches, "WHERE id = ?"), id));
  CARAVAN_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return absl::NotFoundError(absl::StrCat("there is no batch \"", id, "\""));
  return ReadBatch(row);
}

absl::StatusOr<std::vector<Batch>> JobStore::ListBatches(const std::string& after,
                                                         int64_t limit) const {
  MutexLock lock(&mu_);
  int64_t before = INT64_MAX;
  if (!after.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(before, NumberOf("batches", "batch", after));
  }
  CARAVAN_ASSIGN_OR_RETURN(
      Statement row, database_->Query(absl::StrCat(kSelectBatches,
                                                   "WHERE number < ? ORDER BY number DESC LIMIT ?"),
                                      before, limit));
  std::vector<Batch> batches;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return batches;
    CARAVAN_ASSIGN_OR_RETURN(Batch batch, ReadBatch(row));
    batches.push_back(std::move(batch));
  }
}

absl::Status JobStore::CancelBatch(const std::string& id, int64_t now) {
  MutexLock lock(&mu_);
  CARAVAN_RETURN_IF_ERROR(NumberOf("batches", "batch", id).status());
  return database_
      ->Run(
          "UPDATE batches SET status = 'cancelling', cancelling_at = ? "
          "WHERE id = ? AND status IN ('validating', 'in_progress')",
          now, id)
      .status();
}

absl::StatusOr<std::vector<OpenBatch>> JobStore::OpenBatches() const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(
      Statement row, database_->Query("SELECT number, id, endpoint, input_file_id, status, "
                                      "in_progress_at IS NOT NULL FROM batches "
                                      "WHERE status IN ('validating', 'in_progress', 'cancelling') "
                                      "ORDER BY number"));
  std::vector<OpenBatch> batches;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return batches;
    CARAVAN_ASSIGN_OR_RETURN(const BatchStatus status, ParseBatchStatus(row.Text(4)));
    batches.push_back({row.Int(0), row.Text(1), row.Text(2), row.Text(3), status, row.Int(5) != 0});
  }
}

absl::Status JobStore::ForgetLines(int64_t batch) {
  CARAVAN_RETURN_IF_ERROR(database_->Run("DELETE FROM growth WHERE batch = ?", batch).status());
  return database_->Run("DELETE FROM lines WHERE batch = ?", batch).status();
}

absl::Status JobStore::ClearLines(int64_t batch) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  CARAVAN_RETURN_IF_ERROR(ForgetLines(batch));
  return transaction.Commit();
}

absl::Status JobStore::BeginBatch(int64_t batch, int64_t now) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  const std::string output = RandomId("file-");
  const std::string errors = RandomId("file-");
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t begun,
      database_->Run("UPDATE batches SET status = 'in_progress', in_progress_at = ?1, "
                     "output_file_id = ?2, error_file_id = ?3, "
                     "total = (SELECT count(*) FROM lines WHERE batch = ?4) "
                     "WHERE number = ?4 AND status = 'validating'",
                     now, output, errors, batch));
  if (begun == 0) return absl::OkStatus();  // it was cancelled
  for (const auto& [id, name] : {std::pair(output, "output"), std::pair(errors, "errors")}) {
    CARAVAN_RETURN_IF_ERROR(
        database_
            ->Run("INSERT INTO files (id, filename, purpose, bytes, created_at, published) SELECT "
                  "?1, id || '_' || ?2 || '.jsonl', 'batch_output', 0, ?3, 0 "
                  "FROM batches WHERE number = ?4",
                  id, std::string(name), now, batch)
            .status());
  }
  return transaction.Commit();
}

absl::Status JobStore::FailBatch(int64_t batch, const std::vector<BatchError>& errors,
                                 int64_t now) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t failed,
      database_->Run("UPDATE batches SET status = 'failed', failed_at = ?, errors = ? "
                     "WHERE number = ? AND status = 'validating'",
                     now, ErrorsText(errors), batch));
  if (failed == 0) return absl::OkStatus();  // it was cancelled
  CARAVAN_RETURN_IF_ERROR(ForgetLines(batch));
  return transaction.Commit();
}

absl::Status JobStore::EndBatch(int64_t batch, int64_t now) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  CARAVAN_RETURN_IF_ERROR(EndBatchLocked(batch, now));
  return transaction.Commit();
}

absl::Status JobStore::EndBatchLocked(int64_t batch, int64_t now) {
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t ended,
      database_->Run("UPDATE batches SET "
                     "completed_at = iif(status = 'in_progress', ?1, NULL), "
                     "finalizing_at = iif(status = 'in_progress', ?1, NULL), "
                     "cancelled_at = iif(status = 'cancelling', ?1, NULL), "
                     "status = iif(status = 'in_progress', 'completed', 'cancelled') "
                     "WHERE number = ?2 AND status IN ('in_progress', 'cancelling') "
                     "AND NOT EXISTS (SELECT * FROM lines WHERE batch = ?2)",
                     now, batch));
  if (ended == 0) return absl::OkStatus();
  // A file with nothing in it is none.
  for (const char* column : {"output_file_id", "error_file_id"}) {
    const std::string id = absl::StrCat("(SELECT ", column, " FROM batches WHERE number = ?1)");
    CARAVAN_RETURN_IF_ERROR(
        database_
            ->Run(absl::StrCat("UPDATE files SET published = 1, created_at = ?2 WHERE bytes > 0 "
                               "AND id = ",
                               id),
                  batch, now)
            .status());
    CARAVAN_ASSIGN_OR_RETURN(
        const int64_t empty,
        database_->Run(absl::StrCat("DELETE FROM files WHERE bytes = 0 AND id = ", id), batch));
    if (empty == 0) continue;
    CARAVAN_RETURN_IF_ERROR(
        database_
            ->Run(absl::StrCat("UPDATE batches SET ", column, " = NULL WHERE number = ?"), batch)
            .status());
  }
  return absl::OkStatus();
}

}  // namespace caravan
