#include "coordinator/store/job_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// "CRVN" in ASCII.
constexpr int32_t kApplicationId = 0x4352564e;

// From no table to version 1. Change nothing of it: add a migration.
constexpr char kVersion1[] = R"sql(
CREATE TABLE numbers (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE files (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  filename TEXT NOT NULL,
  purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  published INTEGER NOT NULL
) STRICT;
CREATE TABLE file_pieces (
  file INTEGER NOT NULL,
  place INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  PRIMARY KEY (file, place)
) STRICT;
CREATE TABLE batches (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  endpoint TEXT NOT NULL,
  input_file_id TEXT NOT NULL,
  output_file_id TEXT,
  error_file_id TEXT,
  metadata TEXT NOT NULL,
  status TEXT NOT NULL,
  errors TEXT NOT NULL,
  total INTEGER NOT NULL,
  completed INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  in_progress_at INTEGER,
  finalizing_at INTEGER,
  completed_at INTEGER,
  failed_at INTEGER,
  cancelling_at INTEGER,
  cancelled_at INTEGER
) STRICT;
CREATE TABLE lines (
  batch INTEGER NOT NULL,
  line INTEGER NOT NULL,
  custom_id TEXT NOT NULL,
  body TEXT NOT NULL,
  draw_seed INTEGER NOT NULL,
  PRIMARY KEY (batch, line),
  UNIQUE (batch, custom_id)
) STRICT;
CREATE TABLE growth (
  batch INTEGER NOT NULL,
  line INTEGER NOT NULL,
  choice INTEGER NOT NULL,
  position INTEGER NOT NULL,
  growth BLOB NOT NULL,
  PRIMARY KEY (batch, line, choice, position)
) STRICT, WITHOUT ROWID;
)sql";

constexpr const char* kMigrations[] = {kVersion1};

}  // namespace

JobStore::JobStore(std::unique_ptr<Database> database)
    : path_(database->path()), database_(std::move(database)) {}

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Database> database,
                           Database::Open(path, {kApplicationId, kMigrations}));
  return std::unique_ptr<JobStore>(new JobStore(std::move(database)));
}

absl::StatusOr<uint64_t> JobStore::ReserveJobIds(uint64_t count) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(
      Statement next,
      database_->Query("INSERT INTO numbers VALUES ('next_job_id', 1 + ?1) "
                       "ON CONFLICT DO UPDATE SET value = value + ?1 RETURNING value",
                       static_cast<int64_t>(count)));
  CARAVAN_ASSIGN_OR_RETURN(const bool row, next.Step());
  const uint64_t end = row ? static_cast<uint64_t>(next.Int(0)) : 0;
  // The statement commits with its last step.
  CARAVAN_RETURN_IF_ERROR(next.Step().status());
  return end - count;
}

absl::Status JobStore::UseModel(uint64_t fingerprint) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t changed,
                           database_->Run("INSERT INTO numbers VALUES ('model_fingerprint', ?1) "
                                          "ON CONFLICT DO UPDATE SET value = ?1 WHERE value <> ?1",
                                          static_cast<int64_t>(fingerprint)));
  if (changed > 0) CARAVAN_RETURN_IF_ERROR(database_->Run("DELETE FROM growth").status());
  return transaction.Commit();
}

absl::StatusOr<int64_t> JobStore::NumberOf(const char* table, const char* noun,
                                           const std::string& id) const {
  CARAVAN_ASSIGN_OR_RETURN(
      Statement row,
      database_->Query(absl::StrCat("SELECT number FROM ", table, " WHERE id = ?"), id));
  CARAVAN_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return absl::NotFoundError(absl::StrCat("there is no ", noun, " \"", id, "\""));
  return row.Int(0);
}

}  // namespace caravan
