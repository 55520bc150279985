#include "coordinator/store/database.h"

#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {

Statement::~Statement() { sqlite3_finalize(statement_); }

void Statement::Reset(size_t num_values) {
  CARAVAN_CHECK(sqlite3_bind_parameter_count(statement_) == static_cast<int>(num_values));
  // What it returns is the last step's error, which that step has told.
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

void Statement::BindOne(int index, int64_t value) {
  CARAVAN_CHECK(sqlite3_bind_int64(statement_, index, value) == SQLITE_OK);
}

void Statement::BindOne(int index, const std::string& value) {
  CARAVAN_CHECK(sqlite3_bind_text64(statement_, index, value.data(), value.size(), SQLITE_TRANSIENT,
                                    SQLITE_UTF8) == SQLITE_OK);
}

void Statement::BindOne(int index, Blob value) {
  // Null data would make it null.
  const char* const data = value.bytes.empty() ? "" : value.bytes.data();
  CARAVAN_CHECK(sqlite3_bind_blob64(statement_, index, data, value.bytes.size(),
                                    SQLITE_TRANSIENT) == SQLITE_OK);
}

absl::StatusOr<bool> Statement::Step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->ToStatus(code);
}

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Text(int column) const {
  const void* const bytes = sqlite3_column_blob(statement_, column);
  const auto size = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
  return size == 0 ? std::string() : std::string(static_cast<const char*>(bytes), size);
}

bool Statement::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

std::optional<int64_t> Statement::OptionalInt(int column) const {
  if (IsNull(column)) return std::nullopt;
  return Int(column);
}

std::optional<std::string> Statement::OptionalText(int column) const {
  if (IsNull(column)) return std::nullopt;
  return Text(column);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path,
                                                         const Format& format) {
  // To SQLite an empty path is a database in memory.
  if (path.empty()) return absl::InvalidArgumentError("the path of the database is empty");
  sqlite3* connection = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &connection,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                                   /*zVfs=*/nullptr);
  CARAVAN_CHECK(connection != nullptr);  // out of memory
  std::unique_ptr<Database> database(new Database(path, connection));
  if (code != SQLITE_OK) return database->ToStatus(code);
  sqlite3_extended_result_codes(connection, 1);
  CARAVAN_RETURN_IF_ERROR(database->Take(format));
  return database;
}

Database::~Database() {
  // Refused while statements live, which would be a bug.
  CARAVAN_CHECK(sqlite3_close(connection_) == SQLITE_OK);
}

absl::Status Database::Take(const Format& format) {
  // Exclusive before WAL: then the lock is kept, and WAL needs no shared memory.
  CARAVAN_RETURN_IF_ERROR(Execute("PRAGMA locking_mode = EXCLUSIVE"));
  CARAVAN_RETURN_IF_ERROR(Execute("BEGIN EXCLUSIVE; COMMIT"));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t application_id, Pragma("application_id"));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t version, Pragma("user_version"));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t changes_of_schema, Pragma("schema_version"));
  const bool is_empty = application_id == 0 && version == 0 && changes_of_schema == 0;
  if (application_id != format.application_id && !is_empty) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": a database of another program"));
  }
  const auto newest = static_cast<int64_t>(format.migrations.size());
  if (version > newest) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": written by a newer Caravan, in version ", version,
                     " of its format; this one knows those up to ", newest));
  }
  CARAVAN_RETURN_IF_ERROR(Execute("PRAGMA journal_mode = WAL"));
  CARAVAN_RETURN_IF_ERROR(Execute("PRAGMA synchronous = FULL"));
  CARAVAN_RETURN_IF_ERROR(Migrate(format));
  taken_ = true;
  return absl::OkStatus();
}

absl::Status Database::Migrate(const Format& format) {
  CARAVAN_ASSIGN_OR_RETURN(int64_t version, Pragma("user_version"));
  while (version < static_cast<int64_t>(format.migrations.size())) {
    CARAVAN_ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(this));
    CARAVAN_RETURN_IF_ERROR(Execute(format.migrations[static_cast<size_t>(version)]));
    ++version;
    const std::string mark = absl::StrCat("PRAGMA application_id = ", format.application_id,
                                          "; PRAGMA user_version = ", version);
    CARAVAN_RETURN_IF_ERROR(Execute(mark.c_str()));
    CARAVAN_RETURN_IF_ERROR(transaction.Commit());
  }
  return absl::OkStatus();
}

absl::StatusOr<Statement> Database::Prepare(absl::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v2(connection_, sql.data(), static_cast<int>(sql.size()),
                                      &statement, /*pzTail=*/nullptr);
  if (code != SQLITE_OK) return ToStatus(code);
  CARAVAN_CHECK(statement != nullptr);
  return Statement(this, statement);
}

absl::Status Database::Execute(const char* sql) {
  const int code = sqlite3_exec(connection_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : ToStatus(code);
}

absl::StatusOr<int64_t> Database::Pragma(absl::string_view name) {
  CARAVAN_ASSIGN_OR_RETURN(Statement statement, Query(absl::StrCat("PRAGMA ", name)));
  CARAVAN_ASSIGN_OR_RETURN(const bool row, statement.Step());
  CARAVAN_CHECK(row);
  return statement.Int(0);
}

int64_t Database::Changes() const { return sqlite3_changes64(connection_); }

absl::Status Database::ToStatus(int code) const {
  const std::string message = absl::StrCat(path_, ": ", sqlite3_errmsg(connection_));
  switch (code & 0xFF) {  // without what extends it
    case SQLITE_FULL:
      return absl::UnavailableError(message);
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    case SQLITE_CORRUPT:
      return absl::DataLossError(message);
    default:
      break;
  }
  if (taken_) return absl::InternalError(message);
  switch (code & 0xFF) {
    case SQLITE_BUSY:
      return absl::InvalidArgumentError(absl::StrCat(path_, ": another process has it open"));
    case SQLITE_NOTADB:
      return absl::InvalidArgumentError(absl::StrCat(path_, ": not a database"));
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::InvalidArgumentError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<Database::Transaction> Database::Transaction::Begin(Database* database) {
  CARAVAN_RETURN_IF_ERROR(database->Execute("BEGIN IMMEDIATE"));
  return Transaction(database);
}

Database::Transaction::~Transaction() {
  // After some errors SQLite has rolled back by itself.
  if (database_ == nullptr || sqlite3_get_autocommit(database_->connection_) != 0) return;
  database_->Execute("ROLLBACK").IgnoreError();
}

absl::Status Database::Transaction::Commit() {
  const absl::Status committed = database_->Execute("COMMIT");
  if (committed.ok()) database_ = nullptr;
  return committed;
}

}  // namespace caravan
