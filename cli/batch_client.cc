#include "cli/batch_client.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cli/job_table.h"
#include "cli/retry.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;

// For the largest file over a slow line.
constexpr absl::Duration kSubmitTimeout = absl::Hours(1);

/// Whether the coordinator, rather than the batch, is what is wrong. A server that is killed in
/// mid-call shows as Unavailable, one that leaves as either.
bool WentAway(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BatchClient>> BatchClient::Connect(Options options) {
  auto client = std::unique_ptr<BatchClient>(new BatchClient(std::move(options)));
  CARAVAN_ASSIGN_OR_RETURN(client->channel_,
                           caravan::Connect(client->options_.flags, client->options_.stop));
  client->batches_ = v1::Batches::NewStub(client->channel_);
  return client;
}

absl::StatusOr<v1::Batch> BatchClient::Submit(const v1::BatchHeader& header,
                                              absl::string_view content) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kSubmitTimeout));
  const std::stop_callback cancel(options_.stop, [&context] { context.TryCancel(); });
  v1::SubmitBatchResponse response;
  const auto writer = batches_->SubmitBatch(&context, &response);
  v1::SubmitBatchRequest request;
  *request.mutable_header() = header;
  bool taken = writer->Write(request);
  while (taken && !content.empty()) {
    const absl::string_view piece = content.substr(0, kPieceBytes);
    request.set_content(std::string(piece));
    taken = writer->Write(request);  // false: refused, and Finish says why
    content.remove_prefix(piece.size());
  }
  writer->WritesDone();
  const absl::Status status = FromGrpcStatus(writer->Finish());
  if (status.ok()) return response.batch();
  if (options_.stop.stop_requested()) return absl::CancelledError("stopped");
  return NameCoordinator(status, options_.flags);
}

absl::StatusOr<v1::Batch> BatchClient::Wait(const std::string& batch_id,
                                            std::function<bool(const v1::Batch&)> on_news) {
  v1::WaitBatchRequest request;
  request.set_batch_id(batch_id);
  v1::Batch last;
  CARAVAN_RETURN_IF_ERROR(Retry([&](grpc::ClientContext& context, bool& heard) {
    const auto reader = batches_->WaitBatch(&context, request);
    v1::WaitBatchResponse response;
    bool enough = false;
    while (!enough && reader->Read(&response)) {
      heard = true;
      last = response.batch();
      enough = on_news(last) || HasEnded(last);
    }
    if (enough) context.TryCancel();
    const absl::Status status = FromGrpcStatus(reader->Finish());
    return enough ? absl::OkStatus() : status;
  }));
  return last;
}

absl::Status BatchClient::Read(const std::string& batch_id, v1::BatchOutput output,
                               std::function<absl::Status(absl::string_view)> sink) {
  v1::ReadBatchOutputRequest request;
  request.set_batch_id(batch_id);
  request.set_output(output);
  absl::Status sunk;
  CARAVAN_RETURN_IF_ERROR(Retry([&](grpc::ClientContext& context, bool& heard) {
    const auto reader = batches_->ReadBatchOutput(&context, request);
    v1::ReadBatchOutputResponse response;
    while (sunk.ok() && reader->Read(&response)) {
      heard = true;
      request.set_cursor(response.next_cursor());
      sunk = sink(response.content());
    }
    if (!sunk.ok()) context.TryCancel();
    const absl::Status status = FromGrpcStatus(reader->Finish());
    return sunk.ok() ? status : absl::OkStatus();
  }));
  return sunk;
}

absl::Status BatchClient::Retry(
    absl::FunctionRef<absl::Status(grpc::ClientContext&, bool& heard)> call) {
  return caravan::Retry(*channel_, {options_.flags, options_.stop, WentAway, options_.on_away},
                        call);
}

}  // namespace caravan
