#ifndef CARAVAN_WORKER_NCCL_NCCL_COMMUNICATOR_H_
#define CARAVAN_WORKER_NCCL_NCCL_COMMUNICATOR_H_

// Some processes, the ranks, that pass bytes between the memories of their cards by NCCL. Transfers
// are queued on a stream like any other work of the card; what they carry matches by order: a
// rank's n-th send to a peer is that peer's n-th receive from it, of the same size.
//
// NCCL orders the transfers of one communicator among themselves, whatever their streams. Who must
// not wait for one peer while another has something takes a communicator for each.
//
//                all ranks have come           the destructor
//   (joining) -------------------------> open ----------------> (all that is queued ends first)
//       | deadline, stop, a peer failed    | any error, Abort
//       v                                  v
//   (an error)                          aborted: what is queued is cut off, every call fails
//
// A peer that dies while a transfer with it is under way is seen as soon as the kernel has closed
// its sockets (half a second); one that falls silent, or whose machine vanishes, only by the
// deadline. Without a transfer nobody looks. Connections are neither encrypted nor authenticated.

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "worker/nccl/nccl_library.h"

namespace caravan {

/// Of the opaque bytes that ranks find one another by.
inline constexpr int kNcclUniqueIdBytes = 128;

/// How long a call waits for others.
struct NcclPatience {
  absl::Duration timeout = absl::InfiniteDuration();
  std::stop_token stop = {};
};

/// Bytes to or from one peer.
struct NcclTransfer {
  static NcclTransfer Send(const void* data, int64_t bytes, int peer) {
    return {.sends = true, .data = const_cast<void*>(data), .bytes = bytes, .peer = peer};
  }
  static NcclTransfer Receive(void* data, int64_t bytes, int peer) {
    return {.sends = false, .data = data, .bytes = bytes, .peer = peer};
  }

  bool sends = false;
  void* data = nullptr;  // of the device; only read when it is sent
  int64_t bytes = 0;     // > 0
  int peer = 0;          // another rank
};

/// Queue and Wait are for one thread at a time; Abort for any, also meanwhile. Every error ends the
/// communicator, and all later calls return it again:
///   Unavailable - a peer or the network is gone;
///   DeadlineExceeded - the patience ran out: what has arrived, and where, is unknown;
///   Cancelled - a stop was requested, or Abort was called;
///   FailedPrecondition - the ranks do not fit together: two on one card, different versions of
///   NCCL;
///   Internal - CUDA or NCCL failed otherwise.
/// Messages begin with Options::name and the rank. After an error the stream runs dry and what was
/// being received is undefined; the process may make another communicator.
class NcclCommunicator {
 public:
  struct Options {
    std::string unique_id;  // from NewUniqueId, the same for all ranks; good for one communicator
    int rank = 0;           // [0, num_ranks), each once
    int num_ranks = 2;
    std::string name = "NCCL";  // for messages
    NcclPatience patience;      // until all ranks have come
  };

  /// An id for ranks that are about to join. Until all of them have, a thread of NCCL's in this
  /// process brings them together at a socket of its own: for ever, where some never come.
  /// Errors: Internal, Unavailable - NCCL finds no network.
  static absl::StatusOr<std::string> NewUniqueId(const NcclLibrary& library);

  /// Waits until all ranks have come. `library` outlives the communicator.
  /// Errors: those above; InvalidArgument - a rank out of range, or no unique id.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(const NcclLibrary& library,
                                                                  const CudaDevice& device,
                                                                  const Options& options);

  /// Waits for what is queued, while it progresses at all, then lets go; else aborts. Peers need
  /// not be there. REQUIRES: no call is under way.
  virtual ~NcclCommunicator() = default;

  /// Queues the transfers on `stream`, which is on Create's device, as one piece of work: they
  /// progress together, so that two ranks may send to each other at once. Returns when they are
  /// queued; only the first ones with a peer wait for that peer to queue its own. The data must
  /// stay until the stream has done them.
  virtual absl::Status Queue(absl::Span<const NcclTransfer> transfers, const CudaStream& stream,
                             const NcclPatience& patience) = 0;

  absl::Status Send(const void* data, int64_t bytes, int peer, const CudaStream& stream,
                    const NcclPatience& patience) {
    return Queue({NcclTransfer::Send(data, bytes, peer)}, stream, patience);
  }
  absl::Status Receive(void* data, int64_t bytes, int peer, const CudaStream& stream,
                       const NcclPatience& patience) {
    return Queue({NcclTransfer::Receive(data, bytes, peer)}, stream, patience);
  }

  /// Waits until all that is queued on `stream` is done, and looks out for failures of the
  /// communicator meanwhile: CudaStream::Synchronize would wait for a dead peer for ever.
  virtual absl::Status Wait(const CudaStream& stream, const NcclPatience& patience) = 0;

  /// Cuts off what is queued; calls under way return Cancelled. Idempotent.
  virtual void Abort() = 0;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_NCCL_NCCL_COMMUNICATOR_H_
