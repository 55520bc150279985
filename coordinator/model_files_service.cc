#include "coordinator/model_files_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;

grpc::Status WrongModel() {
  return ToGrpcStatus(absl::AbortedError("the coordinator serves another model"));
}

}  // namespace

grpc::Status ModelFilesService::ListTensors(grpc::ServerContext* /*context*/,
                                            const v1::ListTensorsRequest* request,
                                            v1::ListTensorsResponse* response) {
  if (request->fingerprint() != checkpoint_->fingerprint()) return WrongModel();
  for (const std::string& name : checkpoint_->TensorNames()) {
    const TensorInfo& info = *checkpoint_->Find(name);
    v1::TensorDescription& tensor = *response->add_tensors();
    tensor.set_name(name);
    tensor.set_dtype(std::string(DTypeName(info.dtype)));
    for (const int64_t dim : info.shape) tensor.add_shape(static_cast<uint64_t>(dim));
  }
  return grpc::Status::OK;
}

grpc::Status ModelFilesService::ReadTensor(grpc::ServerContext* /*context*/,
                                           const v1::ReadTensorRequest* request,
                                           grpc::ServerWriter<v1::ReadTensorResponse>* writer) {
  if (request->fingerprint() != checkpoint_->fingerprint()) return WrongModel();
  const SafetensorsFile* const shard = checkpoint_->ShardOf(request->name());
  if (shard == nullptr) {
    return ToGrpcStatus(absl::NotFoundError(absl::StrCat("no tensor ", request->name())));
  }
  const absl::Span<const std::byte> bytes = shard->Bytes(request->name());
  v1::ReadTensorResponse piece;
  for (size_t begin = 0; begin < bytes.size(); begin += kPieceBytes) {
    const size_t size = std::min(kPieceBytes, bytes.size() - begin);
    piece.set_data(bytes.data() + begin, size);
    if (!writer->Write(piece)) break;  // The worker went away.
  }
  shard->Release(request->name());
  return grpc::Status::OK;
}

}  // namespace caravan
