#include "base/io/uring_read_queue.h"

#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <system_error>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "base/check.h"

namespace caravan {
namespace {

/// What the kernel registers as one buffer at most.
constexpr size_t kMaxRegisteredBytes = size_t{1} << 30;

/// Of the eventfd's read; others carry their piece's slot.
constexpr uint64_t kWakeUpTag = ~uint64_t{0};

bool CanRead(io_uring* ring) {
  io_uring_probe* const probe = io_uring_get_probe_ring(ring);
  if (probe == nullptr) return false;
  const bool can = io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
  io_uring_free_probe(probe);
  return can;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadQueue>> UringReadQueue::Create(const Options& options) {
  FileDescriptor wake_up(::eventfd(0, EFD_CLOEXEC));
  if (wake_up.get() < 0) return absl::UnavailableError("no eventfd");
  auto queue = absl::WrapUnique(new UringReadQueue(options, std::move(wake_up)));
  // One more than pieces: the eventfd's.
  const unsigned entries = static_cast<unsigned>(options.depth) + 1;
  const int refused = io_uring_queue_init(entries, &queue->ring_, 0);
  if (refused != 0) {
    return absl::UnavailableError(absl::ErrnoToStatus(-refused, "io_uring").message());
  }
  queue->has_ring_ = true;
  if (!CanRead(&queue->ring_)) return absl::UnavailableError("io_uring: a kernel before 5.6");
  queue->RegisterMemory();
  try {
    queue->thread_ = std::make_unique<NamedThread>("read-queue", [q = queue.get()] { q->Run(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(error.what());
  }
  return queue;
}

UringReadQueue::~UringReadQueue() {
  Stop();
  thread_.reset();
  if (!has_ring_) return;
  // The kernel takes a ring apart some time after its end, and until then holds on to registered
  // memory: who then took as much again would have it twice.
  if (memory_registered_) io_uring_unregister_buffers(&ring_);
  io_uring_queue_exit(&ring_);
}

// Registered memory spares the kernel to look up and pin 256 pages a MiB. Files are not registered:
// that spares a reference count a piece, but keeps a file open longer than its DirectFile.
void UringReadQueue::RegisterMemory() {
  std::vector<iovec> parts;
  for (size_t begin = 0; begin < memory_.size(); begin += kMaxRegisteredBytes) {
    parts.push_back(
        {memory_.data() + begin, std::min(kMaxRegisteredBytes, memory_.size() - begin)});
  }
  memory_registered_ =
      !parts.empty() &&
      io_uring_register_buffers(&ring_, parts.data(), static_cast<unsigned>(parts.size())) == 0;
}

void UringReadQueue::Wake() {
  if (!asleep_.exchange(false)) return;
  const uint64_t one = 1;
  CARAVAN_CHECK(::write(wake_up_.get(), &one, sizeof(one)) == sizeof(one));
}

void UringReadQueue::Run() {
  std::vector<ReadSchedule::Ended> ended;
  while (true) {
    {
      MutexLock lock(&mu_);
      asleep_ = false;
      Reap();
      while (const std::optional<ReadSchedule::Piece> piece = schedule_.Begin()) {
        PrepareRead(*piece);
      }
      schedule_.TakeEnded(ended);
      if (stopped_ && ended.empty() && schedule_.Idle()) return;
      asleep_ = ended.empty();
    }
    if (!can_be_woken_) PrepareWakeUp();
    // What has begun goes to the kernel before the callbacks, so that the disk works meanwhile.
    const int submitted = io_uring_submit_and_wait(&ring_, ended.empty() ? 1 : 0);
    // Else it is for later, and the next round tries again.
    CARAVAN_CHECK(submitted >= 0 || submitted == -EINTR || submitted == -EAGAIN ||
                  submitted == -EBUSY || submitted == -ENOMEM);
    Tell(ended);
  }
}

void UringReadQueue::Reap() {
  io_uring_cqe* end = nullptr;
  while (io_uring_peek_cqe(&ring_, &end) == 0) {
    if (end->user_data == kWakeUpTag) {
      can_be_woken_ = false;
    } else {
      schedule_.Finish(static_cast<int>(end->user_data), end->res);
    }
    io_uring_cqe_seen(&ring_, end);
  }
}

void UringReadQueue::PrepareRead(const ReadSchedule::Piece& piece) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  CARAVAN_CHECK(entry != nullptr);  // there is one for each slot
  const unsigned bytes = static_cast<unsigned>(piece.out.size());
  const uint64_t offset = static_cast<uint64_t>(piece.offset);
  const auto part = RegisteredPart(piece.out);
  if (part.has_value()) {
    io_uring_prep_read_fixed(entry, piece.file->fd(), piece.out.data(), bytes, offset, *part);
  } else {
    io_uring_prep_read(entry, piece.file->fd(), piece.out.data(), bytes, offset);
  }
  entry->user_data = static_cast<uint64_t>(piece.slot);
}

std::optional<int> UringReadQueue::RegisteredPart(absl::Span<std::byte> out) const {
  if (!memory_registered_) return std::nullopt;
  // Addresses as numbers: `out` may lie anywhere. Below the memory, this is larger than its size.
  const uintptr_t begin =
      reinterpret_cast<uintptr_t>(out.data()) - reinterpret_cast<uintptr_t>(memory_.data());
  const uintptr_t last = begin + out.size() - 1;
  if (begin >= memory_.size() || last >= memory_.size()) return std::nullopt;
  if (begin / kMaxRegisteredBytes != last / kMaxRegisteredBytes) return std::nullopt;
  return static_cast<int>(begin / kMaxRegisteredBytes);
}

void UringReadQueue::PrepareWakeUp() {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  CARAVAN_CHECK(entry != nullptr);
  io_uring_prep_read(entry, wake_up_.get(), &wake_ups_, sizeof(wake_ups_), 0);
  entry->user_data = kWakeUpTag;
  can_be_woken_ = true;
}

}  // namespace caravan
