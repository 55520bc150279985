#ifndef CARAVAN_CLUSTER_PART_STREAM_H_
#define CARAVAN_CLUSTER_PART_STREAM_H_

// How bytes of models go from process to process, files as well as tensors: part by part, each with
// a receipt, and as both ends' shares of time for that allow (cluster/serving_share.h). The order
// of messages is PackFiles.ReadFile's (proto/caravan/v1/model_files.proto).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "cluster/grpc_status.h"
#include "cluster/serving_share.h"
#include "cluster/silence_limit.h"
#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/sync_stream.h"

namespace caravan {

/// The most that is asked for at a time: little enough that activations do not wait long behind it.
inline constexpr int64_t kPartBytes = int64_t{256} << 10;

/// How long an answer, or its receipt, may take: over the slowest link that is of use (32 KiB/s) a
/// part takes 8 s, and there may be another one beside it. More than keepalive needs to find that
/// nobody is there, so this is for who is, and hangs.
inline constexpr absl::Duration kPartTimeout = absl::Seconds(20);

/// The server's end: answers until the caller closes the stream. `find` makes sure that there is
/// such a part; `read` then reads it, while the share's turn is held. Both may change what they
/// share. Returns what the call ends with.
template <typename Request, typename Response, typename Part>
grpc::Status GiveParts(
    grpc::ServerContext* context, grpc::ServerReaderWriter<Response, Request>* stream,
    ServingShare* share, absl::Duration receipt_timeout,
    absl::FunctionRef<absl::Status(const Part& part)> find,
    absl::FunctionRef<absl::Status(const Part& part, absl::Span<std::byte> out)> read) {
  Request request;
  Response response;
  while (stream->Read(&request)) {
    if (!request.has_part()) {
      return ToGrpcStatus(absl::InvalidArgumentError("asked for no part"));
    }
    const Part part = request.part();
    if (part.size() < 1 || part.size() > kPartBytes) {
      return ToGrpcStatus(absl::InvalidArgumentError(
          absl::StrCat("a part of ", part.size(), " bytes, of 1 to ", kPartBytes)));
    }
    if (const absl::Status found = find(part); !found.ok()) return ToGrpcStatus(found);
    response.Clear();
    if (const absl::Duration wait = share->TryBegin(); wait > absl::ZeroDuration()) {
      response.set_wait_us(static_cast<uint64_t>(absl::ToInt64Microseconds(wait)) + 1);
      if (!stream->Write(response)) break;
      continue;
    }
    const absl::Duration begin = SteadyClock().Now();
    std::string& data = *response.mutable_data();
    data.resize(part.size());
    const absl::Status status =
        read(part, absl::MakeSpan(reinterpret_cast<std::byte*>(data.data()), data.size()));
    // What is written lies in buffers for a while: only the receipt says what it took.
    bool received = false;
    if (status.ok()) {
      // Who is silent would keep others from their turn.
      const SilenceLimit limit([context] { context->TryCancel(); }, receipt_timeout);
      received = stream->Write(response) && stream->Read(&request);
    }
    share->End(SteadyClock().Now() - begin);
    if (!status.ok()) return ToGrpcStatus(status);
    if (!received) break;  // The caller went away.
    if (!request.has_received()) {
      return ToGrpcStatus(absl::InvalidArgumentError("a part's receipt was due"));
    }
  }
  return grpc::Status::OK;
}

/// The caller's end, of one part: waits for this process's own turn, asks, and sends the receipt.
/// Returns 0 where `response.data()` is what came, of whatever size; else how long the other end
/// wants to be left alone, from 1 ms to ServingShare::kLongestRest.
/// Errors: Cancelled - `stop` was requested; DeadlineExceeded - no answer within `timeout`;
///         Unknown - the stream has ended, and FinishParts says why. After each the call is over,
///         or cancelled.
template <typename Request, typename Response>
absl::StatusOr<absl::Duration> AskForPart(grpc::ClientContext* context,
                                          grpc::ClientReaderWriter<Request, Response>* stream,
                                          const Request& request, ServingShare* share,
                                          absl::Duration timeout, const std::stop_token& stop,
                                          Response& response) {
  if (!share->Begin([&stop] { return stop.stop_requested(); })) {
    context->TryCancel();
    return absl::CancelledError("stopped");
  }
  const absl::Duration begin = SteadyClock().Now();
  bool answered = false;
  bool came = false;
  bool timed_out = false;
  {
    const SilenceLimit limit([context] { context->TryCancel(); }, timeout);
    answered = stream->Write(request) && stream->Read(&response);
    came = answered && (response.wait_us() == 0 || !response.data().empty());
    if (came) {
      Request receipt;
      receipt.mutable_received();
      answered = stream->Write(receipt);
    }
    timed_out = limit.passed();
  }
  if (answered && !came) {
    // That it was asked has cost next to nothing, and another source may give something meanwhile.
    share->GiveUpTurn();
    return std::clamp(
        absl::Microseconds(static_cast<int64_t>(std::min(response.wait_us(), uint64_t{1} << 40))),
        absl::Duration(absl::Milliseconds(1)), ServingShare::kLongestRest);
  }
  share->End(SteadyClock().Now() - begin);
  if (answered) return absl::ZeroDuration();
  if (stop.stop_requested()) return absl::CancelledError("stopped");
  if (timed_out) {
    return absl::DeadlineExceededError(
        absl::StrCat("no answer within ", absl::FormatDuration(timeout)));
  }
  return absl::UnknownError("the stream has ended");
}

/// The caller's end, after the last part: closes the stream, and cancels it where the other end
/// does not within `timeout`. `asked`: the last AskForPart's error, or what is wrong with what
/// came; else OK. Returns that, but where the stream had ended, why.
/// Errors: Cancelled - `stop` was requested; DataLoss - the other end says nothing of why;
///         Unavailable - it cancelled the call, or has gone; its others.
template <typename Request, typename Response>
absl::Status FinishParts(grpc::ClientContext* context,
                         grpc::ClientReaderWriter<Request, Response>* stream,
                         const absl::Status& asked, absl::Duration timeout,
                         const std::stop_token& stop) {
  absl::Status ended;
  {
    const SilenceLimit limit([context] { context->TryCancel(); }, timeout);
    stream->WritesDone();
    ended = FromGrpcStatus(stream->Finish());
  }
  if (!absl::IsUnknown(asked)) return asked;
  if (stop.stop_requested()) return absl::CancelledError("stopped");
  if (ended.ok()) return absl::DataLossError("the other end stopped before all had come");
  return absl::IsCancelled(ended) ? absl::UnavailableError(ended.message()) : ended;
}

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PART_STREAM_H_
