#include "coordinator/batch/batch_book.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "coordinator/batch/batch_input.h"
#include "coordinator/openai/request_fields.h"
#include "coordinator/random_id.h"
#include "coordinator/store/job_store.h"
#include "model/utf8_stream.h"

namespace caravan {
namespace {

constexpr size_t kMaxNameBytes = 512;

absl::Status CheckText(const std::string& field, const std::string& text, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return ParamError(field, absl::StrCat("has more than ", max_bytes, " bytes"));
  }
  if (FindInvalidUtf8(text).has_value()) return ParamError(field, "is not UTF-8");
  return absl::OkStatus();
}

absl::Status CheckName(const std::string& field, const std::string& name) {
  if (name.empty()) return ParamError(field, "is empty");
  return CheckText(field, name, kMaxNameBytes);
}

absl::Status CheckMetadata(const std::map<std::string, std::string>& metadata) {
  if (static_cast<int64_t>(metadata.size()) > kMaxMetadataPairs) {
    return ParamError("metadata", absl::StrCat("has more than ", kMaxMetadataPairs, " pairs"));
  }
  for (const auto& [key, value] : metadata) {
    CARAVAN_RETURN_IF_ERROR(CheckText("metadata", key, kMaxMetadataKeyBytes));
    CARAVAN_RETURN_IF_ERROR(
        CheckText(absl::StrCat("metadata.", key), value, kMaxMetadataValueBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckLimit(int64_t limit) {
  return limit >= 1 ? absl::OkStatus() : ParamError("limit", "must be at least 1");
}

/// Whether there is more than `limit`, which goes.
template <typename T>
bool CutTo(int64_t limit, std::vector<T>& page) {
  const bool more = static_cast<int64_t>(page.size()) > limit;
  if (more) page.resize(static_cast<size_t>(limit));
  return more;
}

}  // namespace

BatchBook::BatchBook(JobStore* store) : store_(store) {}

absl::StatusOr<FileObject> BatchBook::AddFile(const NewFile& file, absl::string_view content) {
  CARAVAN_RETURN_IF_ERROR(CheckName("filename", file.filename));
  CARAVAN_RETURN_IF_ERROR(CheckName("purpose", file.purpose));
  const FileObject object = {RandomId("file-"), file.filename, file.purpose,
                             static_cast<int64_t>(content.size()), UnixNow()};
  CARAVAN_RETURN_IF_ERROR(store_->AddFile(object, content));
  return object;
}

absl::StatusOr<FileObject> BatchBook::GetFile(const std::string& id) const {
  return store_->GetFile(id);
}

absl::StatusOr<BatchBook::FilePage> BatchBook::ListFiles(const FileQuery& query) const {
  CARAVAN_RETURN_IF_ERROR(CheckLimit(query.limit));
  FilePage page;
  CARAVAN_ASSIGN_OR_RETURN(
      page.files, store_->ListFiles(query.after, query.limit + 1, query.purpose, query.ascending));
  page.has_more = CutTo(query.limit, page.files);
  return page;
}

absl::StatusOr<std::string> BatchBook::ReadFile(const std::string& id, int64_t& cursor) const {
  return store_->ReadFile(id, cursor);
}

absl::StatusOr<std::string> BatchBook::FileContent(const std::string& id) const {
  std::string content;
  int64_t cursor = 0;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string piece, store_->ReadFile(id, cursor));
    if (piece.empty()) return content;
    content += piece;
  }
}

absl::Status BatchBook::DeleteFile(const std::string& id) { return store_->DeleteFile(id); }

absl::StatusOr<Batch> BatchBook::CreateBatch(const NewBatch& batch) {
  if (!BatchApi(batch.endpoint).has_value()) {
    return ParamError("endpoint", "must be \"/v1/chat/completions\" or \"/v1/completions\"");
  }
  CARAVAN_RETURN_IF_ERROR(CheckMetadata(batch.metadata));
  const absl::StatusOr<FileObject> file = store_->GetFile(batch.input_file_id);
  if (absl::IsNotFound(file.status())) return ParamError("input_file_id", file.status().message());
  CARAVAN_RETURN_IF_ERROR(file.status());
  if (file->purpose != "batch") {
    return ParamError("input_file_id",
                      absl::StrCat("the file's purpose is \"", file->purpose, "\", not \"batch\""));
  }
  Batch created;
  created.id = RandomId("batch_");
  created.endpoint = batch.endpoint;
  created.input_file_id = batch.input_file_id;
  created.metadata = batch.metadata;
  created.created_at = UnixNow();
  created.version = 1;
  CARAVAN_RETURN_IF_ERROR(store_->AddBatch(created));
  TellRunner();
  return created;
}

absl::StatusOr<Batch> BatchBook::GetBatch(const std::string& id) const {
  // Before the batch: it may be newer than its version, but not older.
  const uint64_t version = VersionOf(id);
  CARAVAN_ASSIGN_OR_RETURN(Batch batch, store_->GetBatch(id));
  batch.version = version;
  return batch;
}

absl::StatusOr<BatchBook::BatchPage> BatchBook::ListBatches(const std::string& after,
                                                            int64_t limit) const {
  CARAVAN_RETURN_IF_ERROR(CheckLimit(limit));
  uint64_t version;
  {
    MutexLock lock(&mu_);
    version = last_version_;
  }
  BatchPage page;
  CARAVAN_ASSIGN_OR_RETURN(page.batches, store_->ListBatches(after, limit + 1));
  page.has_more = CutTo(limit, page.batches);
  for (Batch& batch : page.batches) batch.version = version;
  return page;
}

absl::StatusOr<Batch> BatchBook::CancelBatch(const std::string& id) {
  CARAVAN_RETURN_IF_ERROR(store_->CancelBatch(id, UnixNow()));
  Changed(id);
  TellRunner();
  CARAVAN_ASSIGN_OR_RETURN(Batch batch, GetBatch(id));
  if (batch.status != BatchStatus::kCancelling && batch.status != BatchStatus::kCancelled) {
    return absl::FailedPreconditionError(absl::StrCat("batch \"", id,
                                                      "\" cannot be cancelled: it is ",
                                                      BatchStatusName(batch.status), " already"));
  }
  return batch;
}

absl::StatusOr<Batch> BatchBook::WaitForChange(const std::string& id, uint64_t version,
                                               absl::Duration timeout) const {
  const absl::Duration deadline = SteadyClock().Now() + timeout;
  CARAVAN_ASSIGN_OR_RETURN(Batch batch, GetBatch(id));
  if (HasEnded(batch.status) || batch.version > version) return batch;
  {
    MutexLock lock(&mu_);
    while (VersionLocked(id) <= version) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) return batch;
      changed_.WaitWithTimeout(&mu_, left);
    }
  }
  return GetBatch(id);
}

void BatchBook::SetListener(std::function<void()> on_work) {
  MutexLock lock(&mu_);
  on_work_ = std::move(on_work);
}

void BatchBook::Changed(const std::string& id) {
  MutexLock lock(&mu_);
  versions_[id] = ++last_version_;
  changed_.SignalAll();
}

void BatchBook::TellRunner() {
  std::function<void()> on_work;
  {
    MutexLock lock(&mu_);
    on_work = on_work_;
  }
  if (on_work != nullptr) on_work();
}

uint64_t BatchBook::VersionOf(const std::string& id) const {
  MutexLock lock(&mu_);
  return VersionLocked(id);
}

uint64_t BatchBook::VersionLocked(const std::string& id) const {
  const auto it = versions_.find(id);
  return it == versions_.end() ? 1 : it->second;
}

}  // namespace caravan
