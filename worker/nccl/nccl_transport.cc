#include "worker/nccl/nccl_transport.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "worker/nccl/nccl_communicator.h"
#include "worker/nccl/nccl_library.h"
#include "worker/nccl/nccl_version.h"

namespace caravan {
namespace {

constexpr int kReceiver = 0;
constexpr int kSender = 1;
constexpr int64_t kFirstMessageBytes = 4;

class NcclLink : public CardLink {
 public:
  NcclLink(std::unique_ptr<CudaStream> stream, std::unique_ptr<NcclCommunicator> communicator)
      : stream_(std::move(stream)), communicator_(std::move(communicator)) {}
  /// The plan is over: nobody wants what may be under way.
  ~NcclLink() override { communicator_->Abort(); }

  absl::Status Send(const std::byte* data, int64_t bytes) override {
    return Carry(NcclTransfer::Send(data, bytes, kReceiver), {});
  }
  absl::Status Receive(std::byte* data, int64_t bytes) override {
    return Carry(NcclTransfer::Receive(data, bytes, kSender), {});
  }
  void Abort() override { communicator_->Abort(); }

  absl::Status Carry(const NcclTransfer& transfer, const NcclPatience& patience) {
    CARAVAN_RETURN_IF_ERROR(communicator_->Queue({transfer}, *stream_, patience));
    return communicator_->Wait(*stream_, patience);
  }

 private:
  const std::unique_ptr<CudaStream> stream_;
  const std::unique_ptr<NcclCommunicator> communicator_;  // after the stream, which it uses
};

class NcclTransport : public CardTransport {
 public:
  NcclTransport(std::unique_ptr<NcclLibrary> library, const CudaDevice& device, std::string card)
      : library_(std::move(library)), device_(device), card_(std::move(card)) {}

  std::string version() const override { return NcclVersionText(library_->version()); }
  std::string card() const override { return card_; }
  absl::StatusOr<std::string> NewLinkId() const override {
    return NcclCommunicator::NewUniqueId(*library_);
  }
  absl::StatusOr<std::unique_ptr<CardLink>> Join(const JoinOptions& options) const override;

 private:
  const std::unique_ptr<NcclLibrary> library_;
  const CudaDevice device_;
  const std::string card_;
};

absl::StatusOr<std::unique_ptr<CardLink>> NcclTransport::Join(const JoinOptions& options) const {
  const absl::Duration deadline = SteadyClock().Now() + options.timeout;
  NcclCommunicator::Options join;
  join.unique_id = options.link_id;
  join.rank = options.sends ? kSender : kReceiver;
  join.name = options.name;
  join.patience = {options.timeout, options.stop};
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<NcclCommunicator> communicator,
                           NcclCommunicator::Create(*library_, device_, join));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CudaStream> stream, CudaStream::Create(device_));
  // The first message makes the connections, which may fail, and takes NCCL's buffers.
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer message,
                           DeviceBuffer::Create(device_, kFirstMessageBytes));
  auto link = std::make_unique<NcclLink>(std::move(stream), std::move(communicator));
  CARAVAN_RETURN_IF_ERROR(link->Carry(
      options.sends ? NcclTransfer::Send(message.data(), kFirstMessageBytes, kReceiver)
                    : NcclTransfer::Receive(message.data(), kFirstMessageBytes, kSender),
      {deadline - SteadyClock().Now(), options.stop}));
  return link;
}

/// NCCL refuses ranks on one card of what it takes for one host; what NCCL_HOSTID says of the
/// latter, it believes.
absl::StatusOr<std::string> CardName(const CudaDevice& device) {
  cudaDeviceProp properties;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, device.ordinal()));
  const absl::string_view uuid(properties.uuid.bytes, sizeof(properties.uuid.bytes));
  const char* const host = std::getenv("NCCL_HOSTID");
  return absl::BytesToHexString(absl::StrCat(uuid, absl::NullSafeStringView(host)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CardTransport>> OpenNcclTransport(const CudaDevice& device) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<NcclLibrary> library, NcclLibrary::Load());
  CARAVAN_ASSIGN_OR_RETURN(std::string card, CardName(device));
  return std::make_unique<NcclTransport>(std::move(library), device, std::move(card));
}

}  // namespace caravan
