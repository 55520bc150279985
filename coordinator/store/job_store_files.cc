// The files of JobStore.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "coordinator/store/job_store.h"

namespace caravan {
namespace {

// Of a piece of a file that came whole, and of what ReadFile gathers.
constexpr size_t kPieceBytes = size_t{1} << 20;

constexpr char kSelectFiles[] =
    "SELECT id, filename, purpose, bytes, created_at FROM files WHERE published ";

FileObject ReadFileObject(const Statement& row) {
  FileObject file;
  file.id = row.Text(0);
  file.filename = row.Text(1);
  file.purpose = row.Text(2);
  file.bytes = row.Int(3);
  file.created_at = row.Int(4);
  return file;
}

absl::Status NoSuchFile(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("there is no file \"", id, "\""));
}

}  // namespace

absl::Status JobStore::AddFile(const FileObject& file, absl::string_view content) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  CARAVAN_RETURN_IF_ERROR(
      database_
          ->Run("INSERT INTO files (id, filename, purpose, bytes, created_at, published) "
                "VALUES (?, ?, ?, ?, ?, 1)",
                file.id, file.filename, file.purpose, file.bytes, file.created_at)
          .status());
  CARAVAN_ASSIGN_OR_RETURN(const int64_t number, NumberOf("files", "file", file.id));
  int64_t place = 0;
  for (size_t begin = 0; begin < content.size(); begin += kPieceBytes) {
    CARAVAN_RETURN_IF_ERROR(database_
                                ->Run("INSERT INTO file_pieces VALUES (?, ?, ?)", number, place++,
                                      Blob{content.substr(begin, kPieceBytes)})
                                .status());
  }
  return transaction.Commit();
}

absl::StatusOr<FileObject> JobStore::GetFile(const std::string& id) const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Statement row,
                           database_->Query(absl::StrCat(kSelectFiles, "AND id = ?"), id));
  CARAVAN_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return NoSuchFile(id);
  return ReadFileObject(row);
}

absl::StatusOr<std::vector<FileObject>> JobStore::ListFiles(const std::string& after, int64_t limit,
                                                            const std::string& purpose,
                                                            bool ascending) const {
  MutexLock lock(&mu_);
  int64_t from = ascending ? 0 : INT64_MAX;
  if (!after.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(from, NumberOf("files", "file", after));
  }
  CARAVAN_ASSIGN_OR_RETURN(
      Statement row,
      database_->Query(
          absl::StrCat(kSelectFiles, "AND (?1 = '' OR purpose = ?1) AND number ",
                       ascending ? "> ?2 ORDER BY number" : "< ?2 ORDER BY number DESC",
                       " LIMIT ?3"),
          purpose, from, limit));
  std::vector<FileObject> files;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return files;
    files.push_back(ReadFileObject(row));
  }
}

absl::StatusOr<std::string> JobStore::ReadFile(const std::string& id, int64_t& cursor) const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(
      Statement file, database_->Query("SELECT number FROM files WHERE published AND id = ?", id));
  CARAVAN_ASSIGN_OR_RETURN(const bool found, file.Step());
  if (!found) return NoSuchFile(id);
  CARAVAN_ASSIGN_OR_RETURN(Statement piece,
                           database_->Query("SELECT place, bytes FROM file_pieces "
                                            "WHERE file = ? AND place >= ? ORDER BY place",
                                            file.Int(0), cursor));
  std::string text;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const bool more, piece.Step());
    if (!more) return text;
    std::string bytes = piece.Text(1);
    if (!text.empty() && text.size() + bytes.size() > kPieceBytes) return text;
    text += bytes;
    cursor = piece.Int(0) + 1;
  }
}

absl::Status JobStore::DeleteFile(const std::string& id) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  {
    CARAVAN_ASSIGN_OR_RETURN(Statement batch,
                             database_->Query("SELECT id FROM batches "
                                              "WHERE status = 'validating' AND input_file_id = ?",
                                              id));
    CARAVAN_ASSIGN_OR_RETURN(const bool is_needed, batch.Step());
    if (is_needed) {
      return absl::FailedPreconditionError(
          absl::StrCat("file \"", id, "\": batch ", batch.Text(0), " is still being made of it"));
    }
  }
  CARAVAN_RETURN_IF_ERROR(database_
                              ->Run("DELETE FROM file_pieces WHERE file = "
                                    "(SELECT number FROM files WHERE published AND id = ?)",
                                    id)
                              .status());
  CARAVAN_ASSIGN_OR_RETURN(const int64_t deleted,
                           database_->Run("DELETE FROM files WHERE published AND id = ?", id));
  if (deleted == 0) return NoSuchFile(id);
  return transaction.Commit();
}

}  // namespace caravan
