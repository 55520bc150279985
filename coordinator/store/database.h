#ifndef CARAVAN_COORDINATOR_STORE_DATABASE_H_
#define CARAVAN_COORDINATOR_STORE_DATABASE_H_

// SQLite with our errors and our lifetimes: a database file, its statements and transactions. What
// lies in it is somebody else's business.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct sqlite3;
struct sqlite3_stmt;

namespace caravan {

class Database;

/// Text is bound and read as std::string; wrap what is not text.
struct Blob {
  absl::string_view bytes;
};

/// A prepared statement and its values. Not thread-safe; must end before its database.
class Statement {
 public:
  Statement(Statement&& other) noexcept
      : database_(other.database_), statement_(std::exchange(other.statement_, nullptr)) {}
  Statement& operator=(Statement&&) = delete;
  ~Statement();

  /// Gives the parameters their values, from the first on, and goes back to before the first row.
  /// REQUIRES: as many as the statement has.
  template <typename... Values>
  void Bind(const Values&... values) {
    Reset(sizeof...(values));
    int index = 0;
    (BindOne(++index, values), ...);
  }

  /// The next row; false: there is none. Errors: as Database; AlreadyExists - a value that must be
  /// the only one of its kind is there already.
  absl::StatusOr<bool> Step();

  /// Of the present row, from column 0. REQUIRES: Step returned true; the column is of that type.
  int64_t Int(int column) const;
  std::string Text(int column) const;  // or a blob's bytes
  bool IsNull(int column) const;
  std::optional<int64_t> OptionalInt(int column) const;
  std::optional<std::string> OptionalText(int column) const;

 private:
  friend class Database;
  Statement(Database* database, sqlite3_stmt* statement)
      : database_(database), statement_(statement) {}

  void Reset(size_t num_values);
  void BindOne(int index, int64_t value);
  void BindOne(int index, const std::string& value);
  void BindOne(int index, Blob value);
  template <typename T>
  void BindOne(int index, const std::optional<T>& value) {
    if (value.has_value()) BindOne(index, *value);  // Reset has made it null
  }

  Database* database_;
  sqlite3_stmt* statement_;
};

/// One connection, which keeps the file to itself from Open to destruction. Not thread-safe.
/// Errors of all, which name the file: Unavailable - the disk is full; DataLoss - the file is
/// damaged; Internal - anything else.
class Database {
 public:
  struct Format {
    int32_t application_id = 0;  // tells our files from others of SQLite's
    /// What brings a file from version i to i + 1: the newest version is their number.
    absl::Span<const char* const> migrations;
  };

  /// Makes the file where there is none, and brings it to the newest version. What is committed is
  /// on the disk (WAL, synchronous=FULL).
  /// Errors: InvalidArgument - another process (or object) has it open, it is no database or
  ///         another program's, its version is newer than ours, or it cannot be opened or written.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path,
                                                        const Format& format);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  const std::string& path() const { return path_; }

  absl::StatusOr<Statement> Prepare(absl::string_view sql);

  /// A statement with its values, before its first row.
  template <typename... Values>
  absl::StatusOr<Statement> Query(absl::string_view sql, const Values&... values) {
    absl::StatusOr<Statement> statement = Prepare(sql);
    if (statement.ok()) statement->Bind(values...);
    return statement;
  }

  /// Runs a statement that yields no rows. Returns how many it changed.
  template <typename... Values>
  absl::StatusOr<int64_t> Run(absl::string_view sql, const Values&... values) {
    absl::StatusOr<Statement> statement = Query(sql, values...);
    if (!statement.ok()) return statement.status();
    if (absl::StatusOr<bool> row = statement->Step(); !row.ok()) return row.status();
    return Changes();
  }

  /// A transaction: undone on destruction unless it was committed. One at a time.
  class Transaction {
   public:
    static absl::StatusOr<Transaction> Begin(Database* database);
    Transaction(Transaction&& other) noexcept
        : database_(std::exchange(other.database_, nullptr)) {}
    Transaction& operator=(Transaction&&) = delete;
    ~Transaction();
    /// All of it is on the disk then; on an error nothing of it.
    absl::Status Commit();

   private:
    explicit Transaction(Database* database) : database_(database) {}
    Database* database_;  // nullptr: it is over
  };

 private:
  friend class Statement;
  Database(std::string path, sqlite3* connection)
      : path_(std::move(path)), connection_(connection) {}

  absl::Status Take(const Format& format);
  absl::Status Migrate(const Format& format);
  /// Runs SQL of any number of statements.
  absl::Status Execute(const char* sql);
  absl::StatusOr<int64_t> Pragma(absl::string_view name);
  int64_t Changes() const;
  absl::Status ToStatus(int code) const;

  const std::string path_;
  sqlite3* const connection_;
  bool taken_ = false;  // Open has done its work
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_STORE_DATABASE_H_
