#include "worker/files/remote_file_source.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <stop_token>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/pack_files_service.h"

namespace caravan {
namespace {

// A read ends for good after this and its bytes at the rate; keepalive finds a dead end before.
constexpr absl::Duration kReadTimeout = absl::Minutes(2);
constexpr int64_t kSlowestBytesPerSecond = int64_t{32} << 10;

// Of one answer: a part, or a list of some hundred files.
constexpr int kMaxAnswerBytes = 4 << 20;
static_assert(kMaxAnswerBytes > 2 * kFilePartBytes);

using ReadStream = grpc::ClientReaderWriter<v1::ReadFileRequest, v1::ReadFileResponse>;

/// One part, there and receipted. Returns whether the stream goes on.
bool BringPart(ReadStream& stream, const v1::ReadFileRequest& request, ServingShare& share,
               const std::stop_token& stop, v1::ReadFileResponse& response) {
  if (!share.Begin([&stop] { return stop.stop_requested(); }).has_value()) return false;
  const absl::Duration begin = SteadyClock().Now();
  v1::ReadFileRequest receipt;
  receipt.mutable_received();
  response.set_waited_us(0);
  const bool came = stream.Write(request) && stream.Read(&response) && stream.Write(receipt);
  // While the part waited there for its turn, it took nothing here.
  const absl::Duration waited = absl::Microseconds(static_cast<int64_t>(response.waited_us()));
  share.End(std::max(absl::ZeroDuration(), SteadyClock().Now() - begin - waited));
  return came;
}

}  // namespace

RemoteFileSource::RemoteFileSource(Options options)
    : options_(std::move(options)),
      stub_(v1::PackFiles::NewStub(
          MakeGrpcChannel(options_.peer, options_.security, kMaxAnswerBytes))) {}

absl::StatusOr<std::vector<OfferedFile>> RemoteFileSource::List(const std::stop_token& stop) {
  grpc::ClientContext context;
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  context.set_deadline(absl::ToChronoTime(absl::Now() + options_.list_timeout));
  v1::ListFilesRequest request;
  request.set_fingerprint(options_.fingerprint);
  request.set_incarnation(options_.peer.incarnation);
  v1::ListFilesResponse response;
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(stub_->ListFiles(&context, request, &response)));
  std::vector<OfferedFile> files;
  for (const v1::PackFile& file : response.files()) {
    files.push_back({file.name(), static_cast<int64_t>(file.bytes())});
  }
  return files;
}

absl::Status RemoteFileSource::Read(
    const std::string& file, int64_t offset, int64_t size,
    absl::FunctionRef<absl::Status(absl::Span<const std::byte>)> sink,
    const std::stop_token& stop) {
  grpc::ClientContext context;
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  context.set_deadline(absl::ToChronoTime(absl::Now() + kReadTimeout +
                                          absl::Seconds(size / kSlowestBytesPerSecond)));
  const std::unique_ptr<ReadStream> stream = stub_->ReadFile(&context);
  v1::ReadFileRequest request;
  v1::FilePart& part = *request.mutable_part();
  part.set_fingerprint(options_.fingerprint);
  part.set_incarnation(options_.peer.incarnation);
  part.set_name(file);
  v1::ReadFileResponse response;
  const int64_t end = offset + size;
  while (offset < end) {
    const int64_t bytes = std::min(kFilePartBytes, end - offset);
    part.set_offset(static_cast<uint64_t>(offset));
    part.set_size(static_cast<uint32_t>(bytes));
    if (!BringPart(*stream, request, *options_.share, stop, response)) break;
    absl::Status kept =
        static_cast<int64_t>(response.data().size()) == bytes
            ? sink(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(response.data().data()),
                                       response.data().size()))
            : absl::DataLossError(
                  absl::StrCat("it sent ", response.data().size(), " of ", bytes, " bytes"));
    if (!kept.ok()) {
      context.TryCancel();
      static_cast<void>(stream->Finish());
      return kept;
    }
    offset += bytes;
  }
  if (stop.stop_requested()) context.TryCancel();
  stream->WritesDone();
  const absl::Status ended = FromGrpcStatus(stream->Finish());
  if (offset == end) return absl::OkStatus();
  if (ended.ok())
    return absl::DataLossError(absl::StrCat("it ended ", end - offset, " bytes early"));
  return ended;
}

}  // namespace caravan
