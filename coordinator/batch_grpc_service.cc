#include "coordinator/batch_grpc_service.h"

#include <grpcpp/grpcpp.h>

#include <optional>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// Each holds a file of up to kMaxUploadBytes in memory.
constexpr size_t kMaxUploads = 4;

// A client that sends nothing for so long gives way to others.
constexpr absl::Duration kMaxUploadSilence = absl::Seconds(30);

constexpr int64_t kDefaultPage = 100;
constexpr int64_t kMaxPage = 1000;

// How long a call waits for news before it looks whether its client is still there.
constexpr absl::Duration kClientCheckInterval = absl::Milliseconds(200);

v1::BatchState ToProto(BatchStatus status) {
  switch (status) {
    case BatchStatus::kValidating:
      return v1::BATCH_STATE_VALIDATING;
    case BatchStatus::kFailed:
      return v1::BATCH_STATE_FAILED;
    case BatchStatus::kInProgress:
      return v1::BATCH_STATE_IN_PROGRESS;
    case BatchStatus::kCompleted:
      return v1::BATCH_STATE_COMPLETED;
    case BatchStatus::kCancelling:
      return v1::BATCH_STATE_CANCELLING;
    case BatchStatus::kCancelled:
      return v1::BATCH_STATE_CANCELLED;
  }
  return v1::BATCH_STATE_UNSPECIFIED;
}

v1::Batch ToProto(const Batch& batch) {
  v1::Batch proto;
  proto.set_batch_id(batch.id);
  proto.set_state(ToProto(batch.status));
  proto.set_endpoint(batch.endpoint);
  proto.set_input_file_id(batch.input_file_id);
  proto.set_output_file_id(batch.output_file_id.value_or(""));
  proto.set_error_file_id(batch.error_file_id.value_or(""));
  proto.set_total_lines(static_cast<uint32_t>(batch.counts.total));
  proto.set_completed_lines(static_cast<uint32_t>(batch.counts.completed));
  proto.set_failed_lines(static_cast<uint32_t>(batch.counts.failed));
  for (const BatchError& error : batch.errors) {
    v1::BatchError& out = *proto.add_errors();
    out.set_code(error.code);
    out.set_message(error.message);
    out.set_param(error.param.value_or(""));
    out.set_line(static_cast<uint32_t>(error.line.value_or(0)));
  }
  proto.mutable_metadata()->insert(batch.metadata.begin(), batch.metadata.end());
  proto.set_created_at_s(batch.created_at);
  proto.set_in_progress_at_s(batch.in_progress_at.value_or(0));
  for (const std::optional<int64_t>& end :
       {batch.completed_at, batch.failed_at, batch.cancelled_at}) {
    if (end.has_value()) proto.set_ended_at_s(*end);
  }
  return proto;
}

absl::Status Leaving() { return absl::UnavailableError("the coordinator is leaving"); }

}  // namespace

grpc::Status BatchGrpcService::SubmitBatch(grpc::ServerContext* context,
                                           grpc::ServerReader<v1::SubmitBatchRequest>* reader,
                                           v1::SubmitBatchResponse* response) {
  const auto upload = EnterUpload(context);
  if (!upload.has_value()) {
    return ToGrpcStatus(absl::ResourceExhaustedError("too many batches are being handed in"));
  }
  const absl::Cleanup leave = [this, upload] {
    MutexLock lock(&mu_);
    uploads_.erase(*upload);
  };
  return ToGrpcStatus(Submit(**upload, *reader, *response->mutable_batch()));
}

std::optional<std::list<BatchGrpcService::Upload>::iterator> BatchGrpcService::EnterUpload(
    grpc::ServerContext* context) {
  const absl::Duration now = clock_->Now();
  MutexLock lock(&mu_);
  if (uploads_.size() < kMaxUploads) return uploads_.insert(uploads_.end(), {context, now});
  for (const Upload& upload : uploads_) {
    if (now - upload.heard_at >= kMaxUploadSilence) upload.context->TryCancel();
  }
  return std::nullopt;
}

absl::Status BatchGrpcService::Submit(Upload& upload,
                                      grpc::ServerReader<v1::SubmitBatchRequest>& reader,
                                      v1::Batch& created) {
  v1::SubmitBatchRequest request;
  if (!reader.Read(&request) || !request.has_header()) {
    return absl::InvalidArgumentError("the first message must be the header");
  }
  const v1::BatchHeader header = std::move(*request.mutable_header());
  if (header.content_bytes() > static_cast<uint64_t>(kMaxUploadBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file is larger than ", kMaxUploadBytes, " bytes"));
  }
  std::string content;
  while (content.size() <= header.content_bytes() && reader.Read(&request)) {
    if (stopping_) return Leaving();
    if (request.has_header()) return absl::InvalidArgumentError("there is a second header");
    {
      MutexLock lock(&mu_);
      upload.heard_at = clock_->Now();
    }
    content += request.content();
  }
  if (upload.context->IsCancelled()) return absl::CancelledError("the client went away");
  if (content.empty()) return absl::InvalidArgumentError("the file is empty");
  if (content.size() != header.content_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has ", content.size() < header.content_bytes() ? "fewer" : "more",
                     " bytes than content_bytes says, ", header.content_bytes()));
  }
  CARAVAN_ASSIGN_OR_RETURN(const FileObject file,
                           book_->AddFile({header.filename(), "batch"}, content));
  const absl::StatusOr<Batch> batch = book_->CreateBatch(
      {file.id, header.endpoint(), {header.metadata().begin(), header.metadata().end()}});
  if (!batch.ok()) {
    // Nobody knows the file; what the batch was refused for says more than what this comes to.
    (void)book_->DeleteFile(file.id);
    return batch.status();
  }
  created = ToProto(*batch);
  return absl::OkStatus();
}

grpc::Status BatchGrpcService::GetBatch(grpc::ServerContext* /*context*/,
                                        const v1::GetBatchRequest* request,
                                        v1::GetBatchResponse* response) {
  const absl::StatusOr<Batch> batch = book_->GetBatch(request->batch_id());
  if (batch.ok()) *response->mutable_batch() = ToProto(*batch);
  return ToGrpcStatus(batch.status());
}

grpc::Status BatchGrpcService::ListBatches(grpc::ServerContext* /*context*/,
                                           const v1::ListBatchesRequest* request,
                                           v1::ListBatchesResponse* response) {
  const int64_t limit = request->limit() == 0 ? kDefaultPage : request->limit();
  if (limit > kMaxPage) {
    return ToGrpcStatus(
        absl::InvalidArgumentError(absl::StrCat("limit: must be at most ", kMaxPage)));
  }
  const absl::StatusOr<BatchBook::BatchPage> page = book_->ListBatches(request->after(), limit);
  if (!page.ok()) return ToGrpcStatus(page.status());
  for (const Batch& batch : page->batches) *response->add_batches() = ToProto(batch);
  response->set_has_more(page->has_more);
  return grpc::Status::OK;
}

grpc::Status BatchGrpcService::CancelBatch(grpc::ServerContext* /*context*/,
                                           const v1::CancelBatchRequest* request,
                                           v1::CancelBatchResponse* response) {
  const absl::StatusOr<Batch> batch = book_->CancelBatch(request->batch_id());
  if (batch.ok()) *response->mutable_batch() = ToProto(*batch);
  return ToGrpcStatus(batch.status());
}

grpc::Status BatchGrpcService::WaitBatch(grpc::ServerContext* context,
                                         const v1::WaitBatchRequest* request,
                                         grpc::ServerWriter<v1::WaitBatchResponse>* writer) {
  return ToGrpcStatus(Wait(*context, request->batch_id(), *writer));
}

absl::Status BatchGrpcService::Wait(grpc::ServerContext& context, const std::string& id,
                                    grpc::ServerWriter<v1::WaitBatchResponse>& writer) const {
  CARAVAN_ASSIGN_OR_RETURN(Batch batch, book_->GetBatch(id));
  v1::WaitBatchResponse response;
  while (true) {
    *response.mutable_batch() = ToProto(batch);
    if (!writer.Write(response)) return absl::CancelledError("the client went away");
    if (HasEnded(batch.status)) return absl::OkStatus();
    const uint64_t told = batch.version;
    while (batch.version == told && !HasEnded(batch.status)) {
      if (stopping_) return Leaving();
      if (context.IsCancelled()) return absl::CancelledError("the client went away");
      CARAVAN_ASSIGN_OR_RETURN(batch, book_->WaitForChange(id, told, kClientCheckInterval));
    }
  }
}

grpc::Status BatchGrpcService::ReadBatchOutput(
    grpc::ServerContext* /*context*/, const v1::ReadBatchOutputRequest* request,
    grpc::ServerWriter<v1::ReadBatchOutputResponse>* writer) {
  return ToGrpcStatus(ReadOutput(*request, *writer));
}

absl::Status BatchGrpcService::ReadOutput(
    const v1::ReadBatchOutputRequest& request,
    grpc::ServerWriter<v1::ReadBatchOutputResponse>& writer) const {
  if (request.output() != v1::BATCH_OUTPUT_REPLIES && request.output() != v1::BATCH_OUTPUT_ERRORS) {
    return absl::InvalidArgumentError("output: must be REPLIES or ERRORS");
  }
  CARAVAN_ASSIGN_OR_RETURN(const Batch batch, book_->GetBatch(request.batch_id()));
  if (!HasEnded(batch.status)) {
    return absl::FailedPreconditionError(absl::StrCat(batch.id, " has not ended"));
  }
  const std::optional<std::string>& file =
      request.output() == v1::BATCH_OUTPUT_REPLIES ? batch.output_file_id : batch.error_file_id;
  if (!file.has_value()) return absl::OkStatus();
  int64_t cursor = request.cursor();
  v1::ReadBatchOutputResponse response;
  while (!stopping_) {
    CARAVAN_ASSIGN_OR_RETURN(*response.mutable_content(), book_->ReadFile(*file, cursor));
    if (response.content().empty()) return absl::OkStatus();
    response.set_next_cursor(cursor);
    if (!writer.Write(response)) return absl::CancelledError("the client went away");
  }
  return Leaving();
}

}  // namespace caravan
