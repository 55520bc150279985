// The lines of JobStore's batches, and what was generated for them.

#include <set>
#include <utility>

#include "base/status_macros.h"
#include "coordinator/store/job_store.h"

namespace caravan {

absl::StatusOr<std::vector<bool>> JobStore::AddLines(int64_t batch,
                                                     const std::vector<BatchLine>& lines) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  std::vector<bool> added;
  for (const BatchLine& line : lines) {
    CARAVAN_ASSIGN_OR_RETURN(const int64_t inserted,
                             database_->Run("INSERT INTO lines VALUES (?, ?, ?, ?, ?) "
                                            "ON CONFLICT (batch, custom_id) DO NOTHING",
                                            batch, line.number, line.custom_id, line.body,
                                            static_cast<int64_t>(line.draw_seed)));
    added.push_back(inserted > 0);
  }
  CARAVAN_RETURN_IF_ERROR(transaction.Commit());
  return added;
}

absl::StatusOr<std::optional<BatchLine>> JobStore::NextLine(int64_t batch, int64_t after) const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Statement row,
                           database_->Query("SELECT line, custom_id, body, draw_seed FROM lines "
                                            "WHERE batch = ? AND line > ? ORDER BY line LIMIT 1",
                                            batch, after));
  CARAVAN_ASSIGN_OR_RETURN(const bool found, row.Step());
  if (!found) return std::optional<BatchLine>();
  return BatchLine{row.Int(0), row.Text(1), row.Text(2), static_cast<uint64_t>(row.Int(3))};
}

absl::StatusOr<std::vector<LineGrowth>> JobStore::ReadGrowth(LineRef line) const {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(
      Statement row, database_->Query("SELECT choice, position, growth FROM growth "
                                      "WHERE batch = ? AND line = ? ORDER BY choice, position",
                                      line.batch, line.line));
  std::vector<LineGrowth> all;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const bool more, row.Step());
    if (!more) return all;
    LineGrowth& each = all.emplace_back();
    each.where = line;
    each.choice = row.Int(0);
    each.position = row.Int(1);
    // What cannot be read is generated again.
    if (!each.growth.ParseFromString(row.Text(2))) all.pop_back();
  }
}

absl::Status JobStore::Record(const std::vector<LineGrowth>& growth,
                              const std::vector<LineResult>& results, int64_t now) {
  MutexLock lock(&mu_);
  CARAVAN_ASSIGN_OR_RETURN(Database::Transaction transaction,
                           Database::Transaction::Begin(database_.get()));
  for (const LineGrowth& each : growth) {
    CARAVAN_RETURN_IF_ERROR(database_
                                ->Run("INSERT OR REPLACE INTO growth VALUES (?, ?, ?, ?, ?)",
                                      each.where.batch, each.where.line, each.choice, each.position,
                                      Blob{each.growth.SerializeAsString()})
                                .status());
  }
  std::set<int64_t> batches;
  for (const LineResult& result : results) {
    CARAVAN_RETURN_IF_ERROR(EndLine(result));
    batches.insert(result.where.batch);
  }
  for (const int64_t batch : batches) CARAVAN_RETURN_IF_ERROR(EndBatchLocked(batch, now));
  return transaction.Commit();
}

absl::Status JobStore::EndLine(const LineResult& result) {
  const auto [batch, line] = result.where;
  CARAVAN_RETURN_IF_ERROR(
      database_->Run("DELETE FROM growth WHERE batch = ? AND line = ?", batch, line).status());
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t ended,
      database_->Run("DELETE FROM lines WHERE batch = ? AND line = ?", batch, line));
  if (ended == 0) return absl::OkStatus();  // it has ended before
  const std::string file = result.failed ? "error_file_id" : "output_file_id";
  const std::string where = " WHERE id = (SELECT " + file + " FROM batches WHERE number = ?1)";
  CARAVAN_RETURN_IF_ERROR(
      database_
          ->Run("INSERT INTO file_pieces SELECT number, ?2, ?3 FROM files" + where, batch, line,
                Blob{result.text})
          .status());
  CARAVAN_RETURN_IF_ERROR(database_
                              ->Run("UPDATE files SET bytes = bytes + ?2" + where, batch,
                                    static_cast<int64_t>(result.text.size()))
                              .status());
  const std::string count = result.failed ? "failed" : "completed";
  return database_
      ->Run("UPDATE batches SET " + count + " = " + count + " + 1 WHERE number = ?", batch)
      .status();
}

}  // namespace caravan
