#include "cluster/pack_files_service.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

grpc::Status WrongIncarnation() {
  return ToGrpcStatus(absl::AbortedError("another process answers at this address by now"));
}

/// Ends a call that still waits for its caller after a while.
class SilenceLimit {
 public:
  SilenceLimit(grpc::ServerContext* context, absl::Duration limit) : call_(new Call) {
    call_->context = context;
    alarm_.Set(absl::ToChronoTime(absl::Now() + limit), [call = call_](bool passed) {
      MutexLock lock(&call->mu);
      if (passed && call->context != nullptr) call->context->TryCancel();
    });
  }
  ~SilenceLimit() {
    {
      MutexLock lock(&call_->mu);
      call_->context = nullptr;
    }
    alarm_.Cancel();
  }

 private:
  struct Call {
    Mutex mu;
    grpc::ServerContext* context ABSL_GUARDED_BY(mu) = nullptr;
  };
  const std::shared_ptr<Call> call_;  // outlives this where the alarm goes off meanwhile
  grpc::Alarm alarm_;
};

absl::Status CheckPart(const v1::ReadFileRequest& request) {
  if (!request.has_part()) return absl::InvalidArgumentError("asked for no part of a file");
  if (request.part().size() < 1 || request.part().size() > kFilePartBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a part of ", request.part().size(), " bytes, of 1 to ", kFilePartBytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ShelvedFile>> FilesOfPack(const PackedModel& model) {
  std::vector<ShelvedFile> files;
  const std::string manifest = JoinPath(model.path(), kPackManifestName);
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> opened,
                           ReadableFile::Open(manifest));
  files.push_back({kPackManifestName, manifest, opened->bytes()});
  for (size_t i = 0; i < model.manifest().files.size(); ++i) {
    const PackedFile& file = model.manifest().files[i];
    files.push_back({file.name, model.FilePath(i), file.bytes});
  }
  return files;
}

grpc::Status PackFilesService::ListFiles(grpc::ServerContext* /*context*/,
                                         const v1::ListFilesRequest* request,
                                         v1::ListFilesResponse* response) {
  if (request->incarnation() != incarnation_) return WrongIncarnation();
  for (const ShelvedFile& each : list_(request->fingerprint())) {
    v1::PackFile& file = *response->add_files();
    file.set_name(each.name);
    file.set_bytes(static_cast<uint64_t>(each.bytes));
  }
  return grpc::Status::OK;
}

absl::StatusOr<std::unique_ptr<ReadableFile>> PackFilesService::Open(
    const v1::FilePart& part) const {
  for (const ShelvedFile& each : list_(part.fingerprint())) {
    if (each.name == part.name()) return ReadableFile::Open(each.path);
  }
  return absl::NotFoundError(absl::StrCat("no file ", part.name(), " of this model is here"));
}

grpc::Status PackFilesService::ReadFile(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::ReadFileResponse, v1::ReadFileRequest>* stream) {
  const auto cancelled = [context] { return context->IsCancelled(); };
  std::unique_ptr<ReadableFile> file;
  v1::FilePart opened;
  v1::ReadFileRequest request;
  v1::ReadFileResponse response;
  while (stream->Read(&request)) {
    if (const absl::Status checked = CheckPart(request); !checked.ok()) {
      return ToGrpcStatus(checked);
    }
    const v1::FilePart part = request.part();
    if (part.incarnation() != incarnation_) return WrongIncarnation();
    if (file == nullptr || part.fingerprint() != opened.fingerprint() ||
        part.name() != opened.name()) {
      absl::StatusOr<std::unique_ptr<ReadableFile>> found = Open(part);
      if (!found.ok()) return ToGrpcStatus(found.status());
      file = *std::move(found);
      opened = part;
    }
    const auto bytes = static_cast<uint64_t>(file->bytes());
    if (part.offset() > bytes || part.size() > bytes - part.offset()) {
      return ToGrpcStatus(
          absl::OutOfRangeError(absl::StrCat(part.name(), " has ", bytes, " bytes")));
    }
    const std::optional<absl::Duration> waited = share_->Begin(cancelled);
    if (!waited.has_value()) return grpc::Status::CANCELLED;
    const absl::Duration begin = SteadyClock().Now();
    std::string& data = *response.mutable_data();
    data.resize(part.size());
    const absl::Status read =
        file->Read(static_cast<int64_t>(part.offset()),
                   absl::MakeSpan(reinterpret_cast<std::byte*>(data.data()), data.size()));
    response.set_waited_us(static_cast<uint64_t>(absl::ToInt64Microseconds(*waited)));
    // What is written lies in buffers for a while: only the receipt says what it took.
    bool received = false;
    if (read.ok()) {
      const SilenceLimit limit(context, receipt_timeout_);
      received = stream->Write(response) && stream->Read(&request);
    }
    share_->End(SteadyClock().Now() - begin);
    if (!read.ok()) return ToGrpcStatus(read);
    if (!received) break;  // The caller went away.
    if (!request.has_received()) {
      return ToGrpcStatus(absl::InvalidArgumentError("a part's receipt was due"));
    }
  }
  return grpc::Status::OK;
}

}  // namespace caravan
