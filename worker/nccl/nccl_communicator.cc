#include "worker/nccl/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "worker/nccl/nccl_functions.h"

namespace caravan {
namespace {

static_assert(kNcclUniqueIdBytes == NCCL_UNIQUE_ID_BYTES);

/// How long the destructor waits for what is queued.
constexpr absl::Duration kFinalizeTimeout = absl::Seconds(5);

/// Channels, each with buffers and a thread block. More are of use to no network, and of little
/// between the cards of a host, where NCCL's own choice takes half a gigabyte of each.
constexpr int kMaxChannels = 4;

/// The pauses between two looks: NCCL has no event to wait for. At first none, since a token's
/// activations take some tens of microseconds; then longer ones, up to what a chunk's would not
/// notice.
class Pauses {
 public:
  void Pause() {
    if (num_yields_ < kYields) {
      ++num_yields_;
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(absl::ToChronoMicroseconds(pause_));
    pause_ = std::min(2 * pause_, kLongest);
  }

 private:
  static constexpr int kYields = 500;
  static constexpr absl::Duration kLongest = absl::Microseconds(500);

  int num_yields_ = 0;
  absl::Duration pause_ = absl::Microseconds(10);
};

class Communicator final : public NcclCommunicator {
 public:
  Communicator(const NcclFunctions& nccl, const CudaDevice& device, const Options& options)
      : nccl_(nccl),
        device_(device),
        label_(absl::StrCat(options.name, ", rank ", options.rank, " of ", options.num_ranks)),
        rank_(options.rank),
        num_ranks_(options.num_ranks) {}

  ~Communicator() override;

  absl::Status Join(const std::string& unique_id, const NcclPatience& patience);

  absl::Status Queue(absl::Span<const NcclTransfer> transfers, const CudaStream& stream,
                     const NcclPatience& patience) override;
  absl::Status Wait(const CudaStream& stream, const NcclPatience& patience) override;
  void Abort() override { static_cast<void>(Fail(absl::CancelledError("aborted"))); }

 private:
  /// Ends the communicator with `status`, unless it has ended before. Returns what it ended with.
  absl::Status Fail(const absl::Status& status);
  absl::Status FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  /// Whether NCCL has done all that was asked of it (transfers: has queued them).
  absl::StatusOr<bool> Idle();

  /// Calls `done` until it returns true, or an error, or the patience runs out; the latter two end
  /// the communicator. `what` is under way.
  template <typename Done>
  absl::Status Poll(const NcclPatience& patience, absl::string_view what, Done done);

  const NcclFunctions& nccl_;
  const CudaDevice device_;
  const std::string label_;
  const int rank_;
  const int num_ranks_;

  // Held during calls of NCCL, which wants one thread at a time in a communicator. None of them
  // waits for a peer; an abort waits for the card to leave what it does.
  Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  ncclComm_t comm_ ABSL_GUARDED_BY(mu_) = nullptr;  // null: aborted, or not yet made
};

absl::Status Communicator::Fail(const absl::Status& status) {
  MutexLock lock(&mu_);
  return FailLocked(status);
}

absl::Status Communicator::FailLocked(const absl::Status& status) {
  if (status_.ok()) status_ = Annotate(status, label_);
  // What an abort fails of has been told by what led to it.
  if (comm_ != nullptr) static_cast<void>(nccl_.comm_abort(std::exchange(comm_, nullptr)));
  return status_;
}

absl::StatusOr<bool> Communicator::Idle() {
  MutexLock lock(&mu_);
  CARAVAN_RETURN_IF_ERROR(status_);
  ncclResult_t state = ncclSuccess;
  absl::Status status =
      NcclStatus(nccl_, nccl_.comm_get_async_error(comm_, &state), "ncclCommGetAsyncError");
  if (status.ok()) status = NcclStatus(nccl_, state, "NCCL");
  if (!status.ok()) return FailLocked(status);
  return state == ncclSuccess;
}

template <typename Done>
absl::Status Communicator::Poll(const NcclPatience& patience, absl::string_view what, Done done) {
  const absl::Duration deadline = SteadyClock().Now() + patience.timeout;
  Pauses pauses;
  while (true) {
    const absl::StatusOr<bool> is_done = done();
    if (!is_done.ok()) return Fail(is_done.status());
    if (*is_done) return absl::OkStatus();
    if (patience.stop.stop_requested()) {
      return Fail(absl::CancelledError(absl::StrCat(what, " was stopped")));
    }
    if (SteadyClock().Now() >= deadline) {
      return Fail(absl::DeadlineExceededError(
          absl::StrCat(what, " took longer than ", absl::FormatDuration(patience.timeout))));
    }
    pauses.Pause();
  }
}

absl::Status Communicator::Join(const std::string& unique_id, const NcclPatience& patience) {
  CARAVAN_RETURN_IF_ERROR(device_.MakeCurrent());
  ncclUniqueId id;
  std::memcpy(id.internal, unique_id.data(), sizeof(id.internal));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.maxCTAs = kMaxChannels;
  {
    MutexLock lock(&mu_);
    const absl::Status status =
        NcclStatus(nccl_, nccl_.comm_init_rank_config(&comm_, num_ranks_, id, rank_, &config),
                   "ncclCommInitRankConfig");
    if (!status.ok()) return FailLocked(status);
  }
  return Poll(patience, "waiting for all ranks to come", [this] { return Idle(); });
}

absl::Status Communicator::Queue(absl::Span<const NcclTransfer> transfers, const CudaStream& stream,
                                 const NcclPatience& patience) {
  CARAVAN_CHECK(stream.device().ordinal() == device_.ordinal());
  if (const absl::Status current = device_.MakeCurrent(); !current.ok()) return Fail(current);
  {
    MutexLock lock(&mu_);
    CARAVAN_RETURN_IF_ERROR(status_);
    ncclResult_t result = nccl_.group_start();
    for (const NcclTransfer& transfer : transfers) {
      CARAVAN_CHECK(transfer.bytes > 0 && transfer.peer >= 0 && transfer.peer < num_ranks_ &&
                    transfer.peer != rank_);
      if (result != ncclSuccess) break;
      const auto bytes = static_cast<size_t>(transfer.bytes);
      result =
          transfer.sends
              ? nccl_.send(transfer.data, bytes, ncclUint8, transfer.peer, comm_, stream.get())
              : nccl_.recv(transfer.data, bytes, ncclUint8, transfer.peer, comm_, stream.get());
    }
    // Always: the group is the thread's, and would swallow its next calls.
    const ncclResult_t ended = nccl_.group_end();
    if (result == ncclSuccess) result = ended;
    const absl::Status status = NcclStatus(nccl_, result, "queueing transfers");
    if (!status.ok()) return FailLocked(status);
  }
  return Poll(patience, "queueing transfers", [this] { return Idle(); });
}

absl::Status Communicator::Wait(const CudaStream& stream, const NcclPatience& patience) {
  if (const absl::Status current = device_.MakeCurrent(); !current.ok()) return Fail(current);
  return Poll(patience, "waiting for transfers", [&]() -> absl::StatusOr<bool> {
    // Before the communicator's state: the stream runs dry after an abort, too.
    const cudaError_t progress = cudaStreamQuery(stream.get());
    // No error, but CUDA keeps it like one, and the next launch would seem to have failed of it.
    if (progress == cudaErrorNotReady) static_cast<void>(cudaGetLastError());
    CARAVAN_ASSIGN_OR_RETURN(const bool idle, Idle());
    if (progress == cudaErrorNotReady) return false;
    CARAVAN_RETURN_IF_ERROR(CudaStatus(progress, "cudaStreamQuery"));
    return idle;
  });
}

Communicator::~Communicator() {
  // A destroyed communicator has to be finalised, and finalising waits for the card: it may take
  // for ever where a peer does not do its part, while an abort never does.
  static_cast<void>(device_.MakeCurrent());
  {
    MutexLock lock(&mu_);
    if (comm_ == nullptr) return;
    const absl::Status status = NcclStatus(nccl_, nccl_.comm_finalize(comm_), "ncclCommFinalize");
    if (!status.ok()) {
      static_cast<void>(FailLocked(status));
      return;
    }
  }
  const absl::Status finalized = Poll({kFinalizeTimeout}, "finalising", [this] { return Idle(); });
  if (!finalized.ok()) return;
  MutexLock lock(&mu_);
  static_cast<void>(nccl_.comm_destroy(std::exchange(comm_, nullptr)));
}

}  // namespace

absl::StatusOr<std::string> NcclCommunicator::NewUniqueId(const NcclLibrary& library) {
  const NcclFunctions& nccl = library.functions();
  ncclUniqueId id;
  CARAVAN_RETURN_IF_ERROR(NcclStatus(nccl, nccl.get_unique_id(&id), "ncclGetUniqueId"));
  return std::string(id.internal, sizeof(id.internal));
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    const NcclLibrary& library, const CudaDevice& device, const Options& options) {
  if (options.unique_id.size() != kNcclUniqueIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat(options.name, ": a unique id has ",
                                                   kNcclUniqueIdBytes, " bytes, not ",
                                                   options.unique_id.size()));
  }
  if (options.rank < 0 || options.rank >= options.num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.name, ": there is no rank ", options.rank, " of ", options.num_ranks));
  }
  auto communicator = std::make_unique<Communicator>(library.functions(), device, options);
  CARAVAN_RETURN_IF_ERROR(communicator->Join(options.unique_id, options.patience));
  return communicator;
}

}  // namespace caravan
