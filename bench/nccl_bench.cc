// A hop over NCCL between two processes of one machine, over sockets on the loopback interface: how
// long a message takes there and back, how many bytes go one way, and what a communicator costs.
// The processes take the first two cards, or share one: then the card changes between them every
// few milliseconds, unless they run under CUDA's Multi-Process Service, and that is most of what
// a message takes.
//
//   nccl_bench
//
// Starts itself again as the other process: nccl_bench peer UNIQUE_ID UNIQUE_ID.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "base/clock.h"
#include "base/subprocess.h"
#include "bench/must_be.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_buffer.h"
#include "tests/support/nccl_peer.h"
#include "worker/nccl/nccl_communicator.h"
#include "worker/nccl/nccl_library.h"
#include "worker/nccl/nccl_version.h"

namespace caravan {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

struct Message {
  const char* name;
  int64_t bytes;
  int round_trips;
  int one_way;
};
// A token's activations and a chunk's of 512 rows, for DeepSeek-R1's hidden_size.
constexpr Message kMessages[] = {{"28 KiB", 7168 * 4, 2000, 2000},
                                 {"14 MiB", 7168 * 4 * 512, 50, 100}};

/// Either end; the peer does the other half of whatever rank 0 does.
class End {
 public:
  End(int rank, const std::string& unique_id)
      : rank_(rank),
        device_(MustBe(CudaDevice::Open(rank % MustBe(CountCudaDevices())))),
        library_(MustBe(NcclLibrary::Load())),
        stream_(MustBe(CudaStream::Create(device_))),
        data_(MustBe(DeviceBuffer::Create(device_, kMessages[1].bytes))) {
    communicator_ = Join(unique_id);
  }

  std::unique_ptr<NcclCommunicator> Join(const std::string& unique_id) {
    NcclCommunicator::Options options;
    options.unique_id = unique_id;
    options.rank = rank_;
    options.patience.timeout = kPatience;
    return MustBe(NcclCommunicator::Create(*library_, device_, options));
  }

  void Send(NcclCommunicator& communicator, int64_t bytes) {
    const absl::Duration begin = SteadyClock().Now();
    MustBe(communicator.Send(data_.data(), bytes, 1 - rank_, *stream_, {kPatience}));
    last_queueing_ = SteadyClock().Now() - begin;
  }
  void Receive(NcclCommunicator& communicator, int64_t bytes) {
    MustBe(communicator.Receive(data_.data(), bytes, 1 - rank_, *stream_, {kPatience}));
  }
  void Wait(NcclCommunicator& communicator) { MustBe(communicator.Wait(*stream_, {kPatience})); }

  void RoundTrip(NcclCommunicator& communicator, int64_t bytes) {
    if (rank_ == 0) Send(communicator, bytes);
    Receive(communicator, bytes);
    // Whoever answers looks at what came first, as a stage does.
    Wait(communicator);
    if (rank_ == 1) Send(communicator, bytes);
  }

  /// `count` messages to rank 1, which then answers with a byte.
  void OneWay(int64_t bytes, int count) {
    for (int i = 0; i < count; ++i) {
      rank_ == 0 ? Send(*communicator_, bytes) : Receive(*communicator_, bytes);
    }
    rank_ == 0 ? Receive(*communicator_, 1) : Send(*communicator_, 1);
    Wait(*communicator_);
  }

  /// What both do, in the same order; rank 0 prints.
  void Run(const std::string& second_unique_id) {
    RoundTrip(*communicator_, 1);
    for (const Message& message : kMessages) {
      std::vector<absl::Duration> times;
      std::vector<absl::Duration> queueing;
      for (int i = 0; i < message.round_trips; ++i) {
        const absl::Duration begin = SteadyClock().Now();
        RoundTrip(*communicator_, message.bytes);
        times.push_back(SteadyClock().Now() - begin);
        queueing.push_back(last_queueing_);
      }
      std::sort(times.begin(), times.end());
      std::sort(queueing.begin(), queueing.end());
      const absl::Duration begin = SteadyClock().Now();
      OneWay(message.bytes, message.one_way);
      const double one_way_s = absl::ToDoubleSeconds(SteadyClock().Now() - begin);
      if (rank_ == 1) continue;
      std::printf(
          "%s: there and back %.1f us (median; 9 of 10 within %.1f us), of which queueing the send "
          "%.1f us; one way %.2f GB/s\n",
          message.name, absl::ToDoubleMicroseconds(times[times.size() / 2]),
          absl::ToDoubleMicroseconds(times[times.size() * 9 / 10]),
          absl::ToDoubleMicroseconds(queueing[queueing.size() / 2]),
          static_cast<double>(message.bytes) * message.one_way / one_way_s / 1e9);
    }
    const int64_t before = MustBe(device_.Memory()).free_bytes;
    const absl::Duration begin = SteadyClock().Now();
    const std::unique_ptr<NcclCommunicator> second = Join(second_unique_id);
    const absl::Duration joined = SteadyClock().Now() - begin;
    RoundTrip(*second, 1);
    const absl::Duration connected = SteadyClock().Now() - begin;
    // So that both ends have all their memory, and still have it, when it is counted.
    RoundTrip(*second, 1);
    const int64_t taken = before - MustBe(device_.Memory()).free_bytes;
    RoundTrip(*second, 1);
    if (rank_ == 1) return;
    std::printf(
        "a second communicator: %.0f ms to join, %.0f ms with its first round trip, %.1f "
        "MiB of cards at both ends together\n",
        absl::ToDoubleMilliseconds(joined), absl::ToDoubleMilliseconds(connected),
        static_cast<double>(taken) / (1 << 20));
  }

 private:
  const int rank_;
  const CudaDevice device_;
  const std::unique_ptr<NcclLibrary> library_;
  const std::unique_ptr<CudaStream> stream_;
  const DeviceBuffer data_;
  std::unique_ptr<NcclCommunicator> communicator_;
  absl::Duration last_queueing_;  // of a send
};

void Main() {
  BeNcclHost("bench");
  const std::unique_ptr<NcclLibrary> library = MustBe(NcclLibrary::Load());
  const std::string first = MustBe(NcclCommunicator::NewUniqueId(*library));
  const std::string second = MustBe(NcclCommunicator::NewUniqueId(*library));
  // Whatever it fails of fails here, too.
  const Subprocess peer = MustBe(StartNcclPeer(
      {"peer", absl::BytesToHexString(first), absl::BytesToHexString(second)}, "/dev/null"));
  std::printf("NCCL %s, cards: %d\n", NcclVersionText(library->version()).c_str(),
              std::min(2, MustBe(CountCudaDevices())));
  End(0, first).Run(second);
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "peer") {
    caravan::End(1, absl::HexStringToBytes(argv[2])).Run(absl::HexStringToBytes(argv[3]));
  } else if (argc == 1) {
    caravan::Main();
  } else {
    std::fprintf(stderr, "usage: nccl_bench\n");
    return 2;
  }
  return 0;
}
