#include "worker/remote_tensor_source.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "base/stoppable_sleep.h"
#include "cluster/grpc_status.h"

namespace caravan {
absl::StatusOr<std::unique_ptr<RemoteTensorSource>> RemoteTensorSource::Connect(Options options) {
  std::unique_ptr<RemoteTensorSource> source(new RemoteTensorSource(std::move(options)));
  grpc::ClientContext context;
  const std::stop_callback cancel(source->options_.stop, [&context] { context.TryCancel(); });
  context.set_deadline(absl::ToChronoTime(absl::Now() + source->options_.connect_timeout));
  v1::ListTensorsRequest request;
  request.set_fingerprint(source->options_.fingerprint);
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
  const std::stop_callback cancel(options_.stop, [&context] { context.TryCancel(); });
  const std::unique_ptr<grpc::ClientReaderWriter<v1::ReadTensorRequest, v1::ReadTensorResponse>>
      stream = stub_->ReadTensor(&context);
  v1::ReadTensorRequest request;
  v1::TensorPart& part = *request.mutable_part();
  part.set_fingerprint(options_.fingerprint);
  part.set_name(std::string(name));
  v1::ReadTensorResponse response;
  absl::Status status;
  for (size_t done = 0; status.ok() && done < out.size();) {
    const size_t bytes = std::min(static_cast<size_t>(kPartBytes), out.size() - done);
    part.set_offset(static_cast<uint64_t>(offset) + done);
    part.set_size(static_cast<uint32_t>(bytes));
    const absl::StatusOr<absl::Duration> wait =
        AskForPart(&context, stream.get(), request, options_.share, options_.part_timeout,
                   options_.stop, response);
    if (!wait.ok()) {
      status = wait.status();
    } else if (*wait > absl::ZeroDuration()) {
      // There is nobody else to ask meanwhile.
      if (!SleepUnlessStopped(*wait, options_.stop)) status = absl::CancelledError("stopped");
    } else if (response.data().size() != bytes) {
      status = absl::DataLossError(
          absl::StrCat("the coordinator sent ", response.data().size(), " of ", bytes, " bytes"));
      context.TryCancel();
    } else {
      std::memcpy(out.data() + done, response.data().data(), bytes);
      done += bytes;
    }
  }
  return Annotate(FinishParts(&context, stream.get(), status, options_.part_timeout, options_.stop),
                  "reading from the coordinator");
}

}  // namespace caravan
