#include "tests/worker/nccl/peer_roles.h"

#include <unistd.h>

#include <memory>
#include <random>

#include "absl/strings/escaping.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "worker/nccl/nccl_communicator.h"
#include "worker/nccl/nccl_library.h"

namespace caravan {
namespace {

constexpr int kOther = 0;

absl::Status Exchange(NcclCommunicator& communicator, const CudaStream& stream) {
  const std::vector<uint32_t> values = PeerValues(1, kPeerValues);
  const int64_t bytes = kPeerValues * static_cast<int64_t>(sizeof(uint32_t));
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer sent, DeviceBuffer::Create(stream.device(), bytes));
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer got, DeviceBuffer::Create(stream.device(), bytes));
  CARAVAN_RETURN_IF_ERROR(CopyToDevice(stream, values.data(), bytes, sent.data()));
  CARAVAN_RETURN_IF_ERROR(communicator.Queue({NcclTransfer::Send(sent.data(), bytes, kOther),
                                              NcclTransfer::Receive(got.data(), bytes, kOther)},
                                             stream, {}));
  CARAVAN_RETURN_IF_ERROR(communicator.Wait(stream, {}));
  std::vector<uint32_t> arrived(kPeerValues);
  CARAVAN_RETURN_IF_ERROR(CopyToHost(stream, got.data(), bytes, arrived.data()));
  if (arrived != PeerValues(kOther, kPeerValues)) return absl::DataLossError("other values came");
  return absl::OkStatus();
}

absl::Status Move(PeerRole role, NcclCommunicator& communicator, const CudaStream& stream,
                  int64_t bytes) {
  CARAVAN_ASSIGN_OR_RETURN(const DeviceBuffer data, DeviceBuffer::Create(stream.device(), bytes));
  for (int round = 0; role != PeerRole::kEcho || round < kEchoRounds; ++round) {
    if (role != PeerRole::kSend) {
      CARAVAN_RETURN_IF_ERROR(communicator.Receive(data.data(), bytes, kOther, stream, {}));
    }
    if (role != PeerRole::kReceive) {
      CARAVAN_RETURN_IF_ERROR(communicator.Send(data.data(), bytes, kOther, stream, {}));
    }
    CARAVAN_RETURN_IF_ERROR(communicator.Wait(stream, {}));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<uint32_t> PeerValues(int rank, int64_t count) {
  std::mt19937 random(static_cast<uint32_t>(rank) + 1);
  std::vector<uint32_t> values(static_cast<size_t>(count));
  for (uint32_t& value : values) value = static_cast<uint32_t>(random());
  return values;
}

absl::Status PlayPeer(PeerRole role, const std::string& unique_id, int64_t bytes) {
  CARAVAN_ASSIGN_OR_RETURN(const CudaDevice device, CudaDevice::Open(0));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<NcclLibrary> library, NcclLibrary::Load());
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<CudaStream> stream, CudaStream::Create(device));
  NcclCommunicator::Options options;
  options.unique_id = absl::HexStringToBytes(unique_id);
  options.rank = 1;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<NcclCommunicator> communicator,
                           NcclCommunicator::Create(*library, device, options));
  switch (role) {
    case PeerRole::kExchange:
      return Exchange(*communicator, *stream);
    case PeerRole::kEcho:
    case PeerRole::kSend:
    case PeerRole::kReceive:
      return Move(role, *communicator, *stream, bytes);
    case PeerRole::kIdle:
      while (true) ::pause();
  }
  CARAVAN_CHECK(false);
}

}  // namespace caravan
