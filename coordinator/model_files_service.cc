#include "coordinator/model_files_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <string>
#include <vector>

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
  if (request->fingerprint() != model_->fingerprint()) return WrongModel();
  for (const std::string& name : model_->TensorNames()) {
    const TensorInfo& info = *model_->Find(name);
    v1::TensorDescription& tensor = *response->add_tensors();
    tensor.set_name(name);
    tensor.set_dtype(std::string(DTypeName(info.dtype)));
    tensor.set_layout(info.layout == MatrixLayout::kTiled16 ? v1::TENSOR_LAYOUT_TILED_16
                                                            : v1::TENSOR_LAYOUT_ROW_MAJOR);
    for (const int64_t dim : info.shape) tensor.add_shape(static_cast<uint64_t>(dim));
  }
  return grpc::Status::OK;
}

grpc::Status ModelFilesService::ReadTensor(grpc::ServerContext* /*context*/,
                                           const v1::ReadTensorRequest* request,
                                           grpc::ServerWriter<v1::ReadTensorResponse>* writer) {
  if (request->fingerprint() != model_->fingerprint()) return WrongModel();
  const TensorInfo* const info = model_->Find(request->name());
  if (info == nullptr) {
    return ToGrpcStatus(absl::NotFoundError(absl::StrCat("no tensor ", request->name())));
  }
  const auto total = static_cast<uint64_t>(info->num_bytes());
  if (request->offset() > total || request->size() > total - request->offset()) {
    return ToGrpcStatus(
        absl::OutOfRangeError(absl::StrCat("tensor ", request->name(), " has ", total, " bytes")));
  }
  std::vector<std::byte> bytes(std::min<size_t>(kPieceBytes, request->size()));
  v1::ReadTensorResponse piece;
  for (uint64_t done = 0; done < request->size(); done += bytes.size()) {
    bytes.resize(std::min<size_t>(kPieceBytes, request->size() - done));
    const absl::Status read = model_->ReadPart(
        request->name(), static_cast<int64_t>(request->offset() + done), absl::MakeSpan(bytes));
    if (!read.ok()) return ToGrpcStatus(read);
    piece.set_data(bytes.data(), bytes.size());
    if (!writer->Write(piece)) break;  // The worker went away.
  }
  return grpc::Status::OK;
}

}  // namespace caravan
