#include "coordinator/model_files_service.h"

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_status.h"
#include "cluster/part_stream.h"

namespace caravan {
namespace {

absl::Status WrongModel() { return absl::AbortedError("the coordinator serves another model"); }

}  // namespace

grpc::Status ModelFilesService::ListTensors(grpc::ServerContext* /*context*/,
                                            const v1::ListTensorsRequest* request,
                                            v1::ListTensorsResponse* response) {
  if (request->fingerprint() != model_->fingerprint()) return ToGrpcStatus(WrongModel());
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

grpc::Status ModelFilesService::ReadTensor(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::ReadTensorResponse, v1::ReadTensorRequest>* stream) {
  const auto find = [this](const v1::TensorPart& part) -> absl::Status {
    if (part.fingerprint() != model_->fingerprint()) return WrongModel();
    const TensorInfo* const info = model_->Find(part.name());
    if (info == nullptr) return absl::NotFoundError(absl::StrCat("no tensor ", part.name()));
    const auto bytes = static_cast<uint64_t>(info->num_bytes());
    if (part.offset() > bytes || part.size() > bytes - part.offset()) {
      return absl::OutOfRangeError(absl::StrCat("tensor ", part.name(), " has ", bytes, " bytes"));
    }
    return absl::OkStatus();
  };
  const auto read = [this](const v1::TensorPart& part, absl::Span<std::byte> out) {
    return model_->ReadPart(part.name(), static_cast<int64_t>(part.offset()), out);
  };
  return GiveParts<v1::ReadTensorRequest, v1::ReadTensorResponse, v1::TensorPart>(
      context, stream, share_, kPartTimeout, find, read);
}

}  // namespace caravan
