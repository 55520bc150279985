#include "cluster/probe_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "cluster/arrival_meter.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// Callers hang up long before that.
constexpr absl::Duration kLongestSend = absl::Seconds(20);

absl::Status CheckPayload(const std::string& payload) {
  if (payload.size() <= static_cast<size_t>(kMostEchoBytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a payload of ", payload.size(), " bytes: ", kMostEchoBytes, " are the most"));
}

absl::Status Busy() {
  return absl::ResourceExhaustedError("another measurement is under way there; try again later");
}

}  // namespace

std::string ProbePayload(int bytes) {
  std::string payload(static_cast<size_t>(bytes), '\0');
  std::mt19937_64 random;
  for (size_t at = 0; at < payload.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(payload.data() + at, &word, std::min(sizeof(word), payload.size() - at));
  }
  return payload;
}

grpc::Status ProbeService::Echo(grpc::ServerContext* /*context*/,
                                grpc::ServerReaderWriter<v1::EchoReply, v1::EchoRequest>* stream) {
  v1::EchoRequest request;
  v1::EchoReply reply;
  while (stream->Read(&request)) {
    if (const absl::Status size = CheckPayload(request.payload()); !size.ok()) {
      return ToGrpcStatus(size);
    }
    *reply.mutable_payload() = std::move(*request.mutable_payload());
    if (!stream->Write(reply, grpc::WriteOptions().set_no_compression())) break;
  }
  return grpc::Status::OK;
}

grpc::Status ProbeService::Receive(grpc::ServerContext* /*context*/,
                                   grpc::ServerReader<v1::ReceiveRequest>* reader,
                                   v1::ReceiveReply* reply) {
  if (measuring_.test_and_set()) return ToGrpcStatus(Busy());
  const auto ended = absl::MakeCleanup([this] { measuring_.clear(); });
  v1::ReceiveRequest request;
  if (!reader->Read(&request)) return grpc::Status::OK;
  const absl::Duration count_for = absl::Milliseconds(request.count_ms());
  if (count_for <= absl::ZeroDuration() || count_for > kLongestCount) {
    return ToGrpcStatus(absl::InvalidArgumentError(
        absl::StrCat("count_ms: must be from 1 to ", absl::ToInt64Milliseconds(kLongestCount))));
  }
  ArrivalMeter meter(count_for);
  do {
    if (const absl::Status size = CheckPayload(request.payload()); !size.ok()) {
      return ToGrpcStatus(size);
    }
    if (meter.Arrived(static_cast<int64_t>(request.payload().size()), SteadyClock().Now())) break;
  } while (reader->Read(&request));
  reply->set_bytes(static_cast<uint64_t>(meter.bytes()));
  reply->set_nanoseconds(static_cast<uint64_t>(absl::ToInt64Nanoseconds(meter.time())));
  return grpc::Status::OK;
}

grpc::Status ProbeService::Send(grpc::ServerContext* /*context*/,
                                const v1::SendRequest* /*request*/,
                                grpc::ServerWriter<v1::SendReply>* writer) {
  if (measuring_.test_and_set()) return ToGrpcStatus(Busy());
  const auto ended = absl::MakeCleanup([this] { measuring_.clear(); });
  v1::SendReply reply;
  reply.set_payload(ProbePayload(kProbeMessageBytes));
  const absl::Duration end = SteadyClock().Now() + kLongestSend;
  while (SteadyClock().Now() < end) {
    if (!writer->Write(reply, grpc::WriteOptions().set_no_compression())) break;
  }
  return grpc::Status::OK;
}

}  // namespace caravan
