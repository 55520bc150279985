#include "cluster/pack_files_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

absl::Status WrongIncarnation() {
  return absl::AbortedError("another process answers at this address by now");
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
  if (request->incarnation() != incarnation_) return ToGrpcStatus(WrongIncarnation());
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
  std::unique_ptr<ReadableFile> file;
  v1::FilePart opened;
  const auto find = [&](const v1::FilePart& part) -> absl::Status {
    if (part.incarnation() != incarnation_) return WrongIncarnation();
    if (file == nullptr || part.fingerprint() != opened.fingerprint() ||
        part.name() != opened.name()) {
      CARAVAN_ASSIGN_OR_RETURN(file, Open(part));
      opened = part;
    }
    const auto bytes = static_cast<uint64_t>(file->bytes());
    if (part.offset() > bytes || part.size() > bytes - part.offset()) {
      return absl::OutOfRangeError(absl::StrCat(part.name(), " has ", bytes, " bytes"));
    }
    return absl::OkStatus();
  };
  const auto read = [&](const v1::FilePart& part, absl::Span<std::byte> out) {
    return file->Read(static_cast<int64_t>(part.offset()), out);
  };
  return GiveParts<v1::ReadFileRequest, v1::ReadFileResponse, v1::FilePart>(
      context, stream, share_, receipt_timeout_, find, read);
}

}  // namespace caravan
