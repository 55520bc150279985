#include "worker/nccl/nccl_communicator.h"

#include <csignal>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/named_thread.h"
#include "base/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_buffer.h"
#include "tests/kernels/cuda/cuda_testing.h"
#include "tests/support/nccl_peer.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/nccl/peer_roles.h"
#include "worker/nccl/nccl_library.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kOther = 1;
/// Longest that anything may take before a test gives up.
constexpr absl::Duration kLong = absl::Seconds(60);
/// So large that no transfer of it is over before this process's next call.
constexpr int64_t kLargeBytes = int64_t{256} << 20;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

/// Rank 0, in this process; rank 1 is a process of its own.
class NcclCommunicatorTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    absl::StatusOr<std::unique_ptr<NcclLibrary>> library = NcclLibrary::Load();
    if (!library.ok()) GTEST_SKIP() << library.status();
    library_ = *std::move(library);
  }

  NcclCommunicator::Options MakeOptions() const {
    NcclCommunicator::Options options;
    absl::StatusOr<std::string> unique_id = NcclCommunicator::NewUniqueId(*library_);
    EXPECT_TRUE(unique_id.ok()) << unique_id.status();
    if (unique_id.ok()) options.unique_id = *unique_id;
    options.name = "the test's";
    options.patience.timeout = kLong;
    return options;
  }

  absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(
      const NcclCommunicator::Options& options) const {
    return NcclCommunicator::Create(*library_, device(), options);
  }

  /// Starts a peer, in place of the one before, and joins it; null with a failed expectation.
  std::unique_ptr<NcclCommunicator> Join(PeerRole role, int64_t bytes = 0) {
    const NcclCommunicator::Options options = MakeOptions();
    peer_.reset();
    absl::StatusOr<Subprocess> peer =
        StartNcclPeer({"peer", absl::StrCat(static_cast<int>(role)),
                       absl::BytesToHexString(options.unique_id), absl::StrCat(bytes)},
                      dir_.File("peer"));
    EXPECT_TRUE(peer.ok()) << peer.status();
    if (!peer.ok()) return nullptr;
    peer_.emplace(*std::move(peer));
    absl::StatusOr<std::unique_ptr<NcclCommunicator>> communicator = Create(options);
    EXPECT_TRUE(communicator.ok()) << communicator.status() << "\n" << PeerOutput();
    return communicator.ok() ? *std::move(communicator) : nullptr;
  }

  Subprocess& peer() { return *peer_; }
  std::string PeerOutput() const {
    std::ifstream in(dir_.File("peer"));
    return std::string(std::istreambuf_iterator<char>(in), {});
  }

  /// Both ways at once with a new peer, to the bit.
  void ExpectExchanges() {
    const std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kExchange);
    ASSERT_NE(communicator, nullptr);
    const DeviceBuffer sent = ToDevice(PeerValues(0, kPeerValues));
    const DeviceBuffer got = Poisoned<uint32_t>(kPeerValues);
    absl::Status status =
        communicator->Queue({NcclTransfer::Send(sent.data(), sent.bytes(), kOther),
                             NcclTransfer::Receive(got.data(), got.bytes(), kOther)},
                            stream(), {kLong});
    ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
    status = communicator->Wait(stream(), {kLong});
    ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
    EXPECT_TRUE(ToHost<uint32_t>(got) == PeerValues(1, kPeerValues)) << "other values came";
    EXPECT_EQ(peer().Wait(kLong), 0) << PeerOutput();
  }

  /// Kills the peer in the middle of a transfer.
  void ExpectSurvivesItsPeer(PeerRole role) {
    const std::unique_ptr<NcclCommunicator> communicator = Join(role, kLargeBytes);
    ASSERT_NE(communicator, nullptr);
    const DeviceBuffer data = Poisoned<uint8_t>(kLargeBytes);
    for (int round = 0; round < 3; ++round) {
      const absl::Status queued =
          role == PeerRole::kSend
              ? communicator->Receive(data.data(), data.bytes(), kOther, stream(), {kLong})
              : communicator->Send(data.data(), data.bytes(), kOther, stream(), {kLong});
      ASSERT_TRUE(queued.ok()) << queued << "\n" << PeerOutput();
      const absl::Duration killed = SteadyClock().Now();
      if (round == 2) peer().Signal(SIGKILL);
      const absl::Status waited = communicator->Wait(stream(), {kLong});
      if (round < 2) {
        ASSERT_TRUE(waited.ok()) << waited << "\n" << PeerOutput();
        continue;
      }
      EXPECT_EQ(waited.code(), absl::StatusCode::kUnavailable) << waited;
      EXPECT_THAT(Message(waited), HasSubstr("the test's, rank 0 of 2"));
      EXPECT_LT(SteadyClock().Now() - killed, absl::Seconds(10));
      RecordProperty("failure", Message(waited));
      RecordProperty("seen_after", absl::FormatDuration(SteadyClock().Now() - killed));
      // It stays so, and what was queued no longer holds the stream.
      EXPECT_EQ(communicator->Send(data.data(), 1, kOther, stream(), {kLong}), waited);
    }
    const absl::Status drained = stream().Synchronize();
    EXPECT_TRUE(drained.ok()) << drained;
    ExpectExchanges();
  }

 private:
  const TempDir dir_;
  std::unique_ptr<NcclLibrary> library_;
  std::optional<Subprocess> peer_;
};

TEST_F(NcclCommunicatorTest, BothWaysAtOnceToTheBit) { ExpectExchanges(); }

TEST_F(NcclCommunicatorTest, MessagesOfAnySizeComeBackInOrder) {
  for (const int64_t bytes : {int64_t{1}, int64_t{7168 * 4}, (int64_t{5} << 20) + 3}) {
    const std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kEcho, bytes);
    ASSERT_NE(communicator, nullptr);
    for (int round = 0; round < kEchoRounds; ++round) {
      const std::vector<uint8_t> values(static_cast<size_t>(bytes), static_cast<uint8_t>(round));
      const DeviceBuffer data = ToDevice(values);
      const DeviceBuffer got = Poisoned<uint8_t>(bytes);
      absl::Status status = communicator->Send(data.data(), bytes, kOther, stream(), {kLong});
      ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
      status = communicator->Receive(got.data(), bytes, kOther, stream(), {kLong});
      ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
      status = communicator->Wait(stream(), {kLong});
      ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
      ASSERT_TRUE(ToHost<uint8_t>(got) == values) << bytes << " bytes, round " << round;
    }
    EXPECT_EQ(peer().Wait(kLong), 0) << PeerOutput();
  }
}

TEST_F(NcclCommunicatorTest, ASenderThatIsKilledMidTransferIsUnavailable) {
  ExpectSurvivesItsPeer(PeerRole::kSend);
}

TEST_F(NcclCommunicatorTest, AReceiverThatIsKilledMidTransferIsUnavailable) {
  ExpectSurvivesItsPeer(PeerRole::kReceive);
}

TEST_F(NcclCommunicatorTest, APeerThatNeverComesEndsInDeadlineExceeded) {
  NcclCommunicator::Options options = MakeOptions();
  options.patience.timeout = absl::Seconds(1);
  const absl::Status status = Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("the test's, rank 0 of 2"), HasSubstr("longer than 1s")));
  ExpectExchanges();
}

TEST_F(NcclCommunicatorTest, AStopEndsTheWaitForAPeer) {
  std::stop_source stop;
  NcclCommunicator::Options options = MakeOptions();
  options.patience.stop = stop.get_token();
  const NamedThread stopper("stopper", [&] { stop.request_stop(); });
  const absl::Status status = Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
}

TEST_F(NcclCommunicatorTest, APeerThatIsSilentEndsInDeadlineExceeded) {
  const std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kIdle);
  ASSERT_NE(communicator, nullptr);
  const DeviceBuffer data = Poisoned<uint8_t>(kLargeBytes);
  // The first transfer with a peer waits for it when it is queued.
  const absl::Status status =
      communicator->Receive(data.data(), data.bytes(), kOther, stream(), {absl::Seconds(1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  ExpectExchanges();
}

TEST_F(NcclCommunicatorTest, APeerThatFallsSilentEndsInDeadlineExceeded) {
  const std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kReceive, kLargeBytes);
  ASSERT_NE(communicator, nullptr);
  const DeviceBuffer data = Poisoned<uint8_t>(kLargeBytes);
  absl::Status status = communicator->Send(data.data(), data.bytes(), kOther, stream(), {kLong});
  ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
  peer().Signal(SIGSTOP);
  status = communicator->Wait(stream(), {absl::Seconds(1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  ExpectExchanges();
}

TEST_F(NcclCommunicatorTest, AnAbortEndsAWaitOfAnotherThread) {
  const std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kReceive, kLargeBytes);
  ASSERT_NE(communicator, nullptr);
  const DeviceBuffer data = Poisoned<uint8_t>(kLargeBytes);
  absl::Status status = communicator->Send(data.data(), data.bytes(), kOther, stream(), {kLong});
  ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
  peer().Signal(SIGSTOP);
  {
    const NamedThread aborter("aborter", [&] { communicator->Abort(); });
    status = communicator->Wait(stream(), {kLong});
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  communicator->Abort();
  EXPECT_EQ(communicator->Wait(stream(), {kLong}), status);
}

TEST_F(NcclCommunicatorTest, TheDestructorCutsOffWhatDoesNotEnd) {
  std::unique_ptr<NcclCommunicator> communicator = Join(PeerRole::kReceive, kLargeBytes);
  ASSERT_NE(communicator, nullptr);
  const DeviceBuffer data = Poisoned<uint8_t>(kLargeBytes);
  const absl::Status status =
      communicator->Send(data.data(), data.bytes(), kOther, stream(), {kLong});
  ASSERT_TRUE(status.ok()) << status << "\n" << PeerOutput();
  peer().Signal(SIGSTOP);
  const absl::Duration before = SteadyClock().Now();
  communicator.reset();
  EXPECT_LT(SteadyClock().Now() - before, absl::Seconds(30));
  const absl::Status drained = stream().Synchronize();
  EXPECT_TRUE(drained.ok()) << drained;
}

TEST_F(NcclCommunicatorTest, TwoRanksOnOneCardOfOneHostDoNotFitTogether) {
  const NcclCommunicator::Options options = MakeOptions();
  NcclCommunicator::Options other_options = options;
  other_options.rank = 1;
  absl::Status status;
  absl::Status other;
  {
    const NamedThread joiner("joiner", [&] { other = Create(other_options).status(); });
    status = Create(options).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(Message(status), HasSubstr("the test's, rank 0 of 2"));
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition) << other;
  EXPECT_THAT(Message(other), HasSubstr("the test's, rank 1 of 2"));
}

TEST_F(NcclCommunicatorTest, RefusesWhatIsNoRankAndNoId) {
  NcclCommunicator::Options options = MakeOptions();
  options.rank = 2;
  EXPECT_EQ(Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.rank = -1;
  EXPECT_EQ(Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.rank = 0;
  options.unique_id = "short";
  const absl::Status status = Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("128 bytes, not 5"));
}

}  // namespace
}  // namespace caravan
