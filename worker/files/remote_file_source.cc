#include "worker/files/remote_file_source.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <stop_token>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"

namespace caravan {
namespace {

// Of one answer: a part, or a list of some hundred files.
constexpr int kMaxAnswerBytes = 4 << 20;
static_assert(kMaxAnswerBytes > 2 * kPartBytes);

using ReadStream = grpc::ClientReaderWriter<v1::ReadFileRequest, v1::ReadFileResponse>;

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

absl::StatusOr<absl::Duration> RemoteFileSource::Read(const std::string& file, int64_t offset,
                                                      int64_t size, FileSink sink,
                                                      const std::stop_token& stop) {
  // Each part has its deadline; all together take as long as they take.
  grpc::ClientContext context;
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  const std::unique_ptr<ReadStream> stream = stub_->ReadFile(&context);
  v1::ReadFileRequest request;
  v1::FilePart& part = *request.mutable_part();
  part.set_fingerprint(options_.fingerprint);
  part.set_incarnation(options_.peer.incarnation);
  part.set_name(file);
  v1::ReadFileResponse response;
  absl::StatusOr<absl::Duration> wait = absl::ZeroDuration();
  for (const int64_t end = offset + size; offset < end;) {
    const int64_t bytes = std::min(kPartBytes, end - offset);
    part.set_offset(static_cast<uint64_t>(offset));
    part.set_size(static_cast<uint32_t>(bytes));
    wait = AskForPart(&context, stream.get(), request, options_.share, options_.part_timeout, stop,
                      response);
    if (!wait.ok() || *wait > absl::ZeroDuration()) break;
    const std::string& data = response.data();
    absl::Status kept =
        static_cast<int64_t>(data.size()) == bytes
            ? sink(
                  absl::MakeConstSpan(reinterpret_cast<const std::byte*>(data.data()), data.size()))
            : absl::DataLossError(absl::StrCat("it sent ", data.size(), " of ", bytes, " bytes"));
    if (!kept.ok()) {
      context.TryCancel();
      FinishParts(&context, stream.get(), kept, options_.part_timeout, stop).IgnoreError();
      return kept;
    }
    offset += bytes;
  }
  CARAVAN_RETURN_IF_ERROR(
      FinishParts(&context, stream.get(), wait.status(), options_.part_timeout, stop));
  return wait;
}

}  // namespace caravan
