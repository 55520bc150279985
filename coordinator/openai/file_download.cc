#include "coordinator/openai/file_download.h"

#include <utility>

#include "base/log.h"
#include "coordinator/http/http_error.h"

namespace caravan {

void FileDownload::Start(std::shared_ptr<Responder> responder, const BatchBook* book,
                         RequestWorker* worker, std::string file_id) {
  const std::shared_ptr<FileDownload> download(
      new FileDownload(responder, book, worker, std::move(file_id)));
  responder->SetEvents([download] { download->finished_ = true; },
                       [download] {
                         if (!download->asked_) download->Ask();
                       });
  download->Ask();
}

void FileDownload::Ask() {
  asked_ = true;
  const auto read = [self = shared_from_this()] { self->ReadNext(); };
  // What has begun is not refused any more.
  const bool posted = begun_ ? worker_->PostMore(read) : worker_->Post(read);
  if (!posted) Fail(absl::ResourceExhaustedError("too many requests wait for the disk"));
}

void FileDownload::ReadNext() {
  absl::StatusOr<std::string> piece = book_->ReadFile(file_id_, cursor_);
  responder_->Post([self = shared_from_this(), piece = std::move(piece)]() mutable {
    self->Take(std::move(piece));
  });
}

void FileDownload::Take(absl::StatusOr<std::string> piece) {
  asked_ = false;
  if (finished_) return;
  if (!piece.ok()) return Fail(piece.status());
  if (!std::exchange(begun_, true)) {
    responder_->StartStream({200, "application/octet-stream", "", {}});
  }
  if (piece->empty()) {
    finished_ = true;
    return responder_->Finish();
  }
  responder_->Write(*std::move(piece));
  if (responder_->writable()) Ask();  // else when it has drained
}

void FileDownload::Fail(const absl::Status& why) {
  finished_ = true;
  if (!begun_) return responder_->Send(ErrorResponse(why));
  // The missing end tells the client: letting go of the responder breaks the stream off.
  LogWarning("download_broken", {{"file", file_id_}, {"why", why.ToString()}});
  responder_->SetEvents(nullptr, nullptr);
}

}  // namespace caravan
