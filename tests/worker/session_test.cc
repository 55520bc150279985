// A worker's life in a cluster, with a coordinator in the same process and a card that can fail.

#include "worker/session.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <future>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "coordinator/coordinator_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/fake_card.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kCardBytes = int64_t{4} << 30;

/// A card of fakes; once it has failed, all of it fails, for good.
class FailingCard : public ComputeDevice {
 public:
  std::string Name() const override { return "cuda:0 (a fake)"; }
  int64_t memory_budget_bytes() const override { return kCardBytes; }
  absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig&, int64_t) const override {
    CARAVAN_RETURN_IF_ERROR(Check());
    auto card = std::make_unique<FakeCard>(*MakeCpuBackend({}), kCardBytes);
    MutexLock lock(&mu_);
    memory_ = &card->memory();
    return card;
  }
  absl::StatusOr<std::unique_ptr<Backend>> MakeCpu() const override { return MakeCpuBackend({}); }
  absl::Status Check() const override {
    return failed_ ? absl::InternalError("the card says no") : absl::OkStatus();
  }

  /// REQUIRES: a stage is loaded.
  void Fail() {
    failed_ = true;
    MutexLock lock(&mu_);
    memory_->Fail(absl::StatusCode::kInternal);
  }

 private:
  std::atomic<bool> failed_ = false;
  mutable Mutex mu_;
  mutable FakeCardMemory* memory_ ABSL_GUARDED_BY(mu_) = nullptr;  // of the latest backend
};

class SessionTest : public ::testing::Test {
 protected:
  /// A session on a thread of its own.
  class Life {
   public:
    Life(const std::string& coordinator, std::shared_ptr<FailingCard> card) {
      options_.coordinator = coordinator;
      options_.listen = "127.0.0.1:0";
      options_.name = "box-a";
      options_.memory_budget_bytes = int64_t{1} << 30;
      options_.device = std::move(card);
      options_.show_progress = [](int64_t, int64_t) {};
      thread_ = std::make_unique<NamedThread>(
          "session", [this] { ended_ = RunWorkerSession(options_, stop_.get_token()); });
    }
    ~Life() { stop_.request_stop(); }

    absl::Status Wait() {
      thread_->Join();
      return ended_;
    }

   private:
    WorkerSessionOptions options_;
    std::stop_source stop_;
    absl::Status ended_;
    std::unique_ptr<NamedThread> thread_;  // last: it uses all of the above
  };

  SessionTest() {
    CoordinatorOptions options;
    options.model_directory = kTinyR1.directory;
    options.listen = "127.0.0.1:0";
    options.state = dir_.File("state.db");
    options.context_tokens = 256;
    options.kv_tokens = 512;
    auto coordinator = CoordinatorServer::Start(options);
    CARAVAN_CHECK(coordinator.ok());
    coordinator_ = *std::move(coordinator);
    channel_ = MakeGrpcChannel(coordinator_->address());
  }

  /// The reply to a question, which waits for a pipeline if there is none.
  absl::StatusOr<std::string> Ask() {
    grpc::ClientContext context;
    v1::SubmitRequest request;
    v1::ChatMessage& message = *request.add_messages();
    message.set_role("user");
    message.set_content("What is 7 + 8?");
    request.set_max_tokens(20);
    const auto events = v1::Jobs::NewStub(channel_)->Submit(&context, request);
    std::string text;
    for (v1::JobEvent event; events->Read(&event);) text += event.delta().text();
    const absl::Status status = FromGrpcStatus(events->Finish());
    if (!status.ok()) return status;
    return text;
  }

  v1::GetStatusResponse Status() {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    EXPECT_TRUE(v1::Cluster::NewStub(channel_)->GetStatus(&context, {}, &response).ok());
    return response;
  }

  const std::string& address() {
    address_ = coordinator_->address();
    return address_;
  }

 private:
  const TempDir dir_;
  std::string address_;
  std::unique_ptr<CoordinatorServer> coordinator_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(SessionTest, AWorkerWhoseCardFailsForGoodLeavesAndItsNextLifeServes) {
  const auto card = std::make_shared<FailingCard>();
  Life first(address(), card);
  const absl::StatusOr<std::string> reply = Ask();
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(Status().workers_size(), 1);
  const v1::WorkerStatus worker = Status().workers(0);
  EXPECT_EQ(worker.device(), "cuda:0 (a fake)");
  EXPECT_TRUE(worker.on_card());
  EXPECT_EQ(worker.memory_budget_bytes(), static_cast<uint64_t>(kCardBytes));
  // Steps take some of it too.
  EXPECT_GT(worker.card_bytes(), worker.loaded_bytes() + worker.kv_bytes());
  EXPECT_LE(worker.card_bytes(), static_cast<uint64_t>(kCardBytes));

  card->Fail();
  std::future<absl::StatusOr<std::string>> asked =
      std::async(std::launch::async, [this] { return Ask(); });
  const absl::Status ended = first.Wait();
  EXPECT_EQ(ended.code(), absl::StatusCode::kInternal) << ended;
  EXPECT_THAT(std::string(ended.message()),
              AllOf(HasSubstr("the card is lost"), HasSubstr("the card says no")));
  EXPECT_EQ(Status().workers_size(), 0);

  // What a supervisor starts.
  Life second(address(), std::make_shared<FailingCard>());
  EXPECT_EQ(asked.get(), reply);
}

TEST_F(SessionTest, ACardThatFailsBetweenStagesIsFoundWhenTheNextOneIsLoaded) {
  const auto card = std::make_shared<FailingCard>();
  Life first(address(), card);
  ASSERT_TRUE(Ask().ok());
  card->Fail();
  // One more box, so that the stages are others.
  Life second(address(), std::make_shared<FailingCard>());
  EXPECT_EQ(first.Wait().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Ask().ok());
}

}  // namespace
}  // namespace caravan
