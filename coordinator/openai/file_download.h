#ifndef CARAVAN_COORDINATOR_OPENAI_FILE_DOWNLOAD_H_
#define CARAVAN_COORDINATOR_OPENAI_FILE_DOWNLOAD_H_

// Carries a file to its client piece by piece: read on a thread that may wait for the disk, written
// as fast as the client takes it, so that one download holds two pieces of about 1 MiB at most.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/http/responder.h"
#include "coordinator/openai/request_worker.h"

namespace caravan {

/// Lives as long as the answer is under way: the responder's events keep it. Borrows book and
/// worker.
class FileDownload : public std::enable_shared_from_this<FileDownload> {
 public:
  /// Returns at once. REQUIRES: called by a handler, before it returns.
  static void Start(std::shared_ptr<Responder> responder, const BatchBook* book,
                    RequestWorker* worker, std::string file_id);

 private:
  FileDownload(std::shared_ptr<Responder> responder, const BatchBook* book, RequestWorker* worker,
               std::string file_id)
      : responder_(std::move(responder)),
        book_(book),
        worker_(worker),
        file_id_(std::move(file_id)) {}

  /// On the worker.
  void ReadNext();

  // On the responder's thread of control.
  void Ask();
  void Take(absl::StatusOr<std::string> piece);
  void Fail(const absl::Status& why);

  const std::shared_ptr<Responder> responder_;
  const BatchBook* const book_;
  RequestWorker* const worker_;
  const std::string file_id_;
  int64_t cursor_ = 0;  // of whoever reads
  bool begun_ = false;  // the stream
  bool asked_ = false;  // a piece is on its way
  bool finished_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_FILE_DOWNLOAD_H_
