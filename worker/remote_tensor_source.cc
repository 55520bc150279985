#include "worker/remote_tensor_source.h"

#include <grpcpp/grpcpp.h>

#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// Loading asks for some megabytes at a time; a link that moves less than that in two minutes is no
// link to run a model over.
constexpr absl::Duration kReadTimeout = absl::Minutes(2);

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteTensorSource>> RemoteTensorSource::Connect(
    const std::shared_ptr<grpc::Channel>& coordinator, uint64_t fingerprint, absl::Duration timeout,
    std::stop_token stop) {
  std::unique_ptr<RemoteTensorSource> source(
      new RemoteTensorSource(v1::ModelFiles::NewStub(coordinator), fingerprint, stop));

  grpc::ClientContext context;
  const std::stop_callback cancel(std::move(stop), [&context] { context.TryCancel(); });
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  v1::ListTensorsRequest request;
  request.set_fingerprint(fingerprint);
  v1::ListTensorsResponse response;
  CARAVAN_RETURN_IF_ERROR(
      Annotate(FromGrpcStatus(source->stub_->ListTensors(&context, request, &response)),
               "asking the coordinator for its list of tensors"));
  for (const v1::TensorDescription& tensor : response.tensors()) {
    const std::optional<DType> dtype = ParseDType(tensor.dtype());
    TensorInfo info;
    bool valid = dtype.has_value();
    if (valid) info.dtype = *dtype;
    int64_t elements = 1;
    for (const uint64_t dim : tensor.shape()) {
      // The bound keeps the product in range; no tensor comes near it.
      valid = valid && dim > 0 && dim < (uint64_t{1} << 40) &&
              elements < (int64_t{1} << 40) / static_cast<int64_t>(dim);
      if (!valid) break;
      elements *= static_cast<int64_t>(dim);
      info.shape.push_back(static_cast<int64_t>(dim));
    }
    if (valid) {
      info.layout = tensor.layout() == v1::TENSOR_LAYOUT_TILED_16 ? MatrixLayout::kTiled16
                                                                  : MatrixLayout::kRowMajor;
      valid = !info.shape.empty() && info.shape.back() % BlockOf(info.dtype).values == 0 &&
              (info.layout == MatrixLayout::kRowMajor || info.shape.size() == 2);
    }
    if (!valid) {
      return absl::InvalidArgumentError(
          absl::StrCat("the coordinator describes tensor ", tensor.name(), " wrongly"));
    }
    source->tensors_[tensor.name()] = std::move(info);
  }
  return source;
}

const TensorInfo* RemoteTensorSource::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::Status RemoteTensorSource::ReadPart(absl::string_view name, int64_t offset,
                                          absl::Span<std::byte> out) const {
  grpc::ClientContext context;
  const std::stop_callback cancel(stop_, [&context] { context.TryCancel(); });
  context.set_deadline(absl::ToChronoTime(absl::Now() + kReadTimeout));
  v1::ReadTensorRequest request;
  request.set_fingerprint(fingerprint_);
  request.set_name(std::string(name));
  request.set_offset(static_cast<uint64_t>(offset));
  request.set_size(out.size());
  const std::unique_ptr<grpc::ClientReader<v1::ReadTensorResponse>> reader =
      stub_->ReadTensor(&context, request);
  v1::ReadTensorResponse piece;
  size_t done = 0;
  while (reader->Read(&piece)) {
    if (piece.data().size() > out.size() - done) {
      context.TryCancel();
      (void)reader->Finish();
      return absl::DataLossError(
          absl::StrCat("the coordinator sent more than ", out.size(), " bytes"));
    }
    std::memcpy(out.data() + done, piece.data().data(), piece.data().size());
    done += piece.data().size();
  }
  CARAVAN_RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  if (done != out.size()) {
    return absl::DataLossError(
        absl::StrCat("the coordinator sent ", done, " of ", out.size(), " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace caravan
