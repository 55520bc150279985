// Workers that find one another's cards when a plan is loaded. The test is the coordinator.

#include <memory>
#include <string>
#include <utility>

#include "cluster/in_process_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/golden.h"
#include "tests/worker/borrowed_source.h"
#include "tests/worker/fake_card_transport.h"
#include "worker/worker.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LinkedWorkersTest : public ::testing::Test {
 protected:
  struct Box {
    BoundedQueue<v1::WorkerReport> reports{1000};
    std::unique_ptr<Worker> worker;

    /// The next report that is no progress.
    v1::WorkerReport NextReport() {
      while (true) {
        v1::WorkerReport report = *reports.Pop();
        if (!report.has_progress()) return report;
      }
    }
    void ExpectReady() {
      const v1::WorkerReport report = NextReport();
      EXPECT_TRUE(report.has_ready()) << report.failure().message();
    }
  };

  std::unique_ptr<Box> MakeBox(const std::string& name, bool requires_transport = false) {
    auto box = std::make_unique<Box>();
    Worker::Environment environment;
    environment.name = name;
    environment.make_backend = [](const ModelConfig&, int64_t) { return MakeCpuBackend({}); };
    environment.card_transport = transport_;
    environment.requires_card_transport = requires_transport;
    environment.open_model = [this](const v1::LoadStage&, const LoadProgress&, std::stop_token) {
      return std::make_unique<BorrowedSource>(*checkpoint_);
    };
    environment.open_next_hop =
        [this](const v1::LoadStage& order, std::function<void(absl::Status)>,
               std::stop_token) -> absl::StatusOr<std::unique_ptr<ActivationChannel>> {
      if (!order.has_next()) {
        return MakeInProcessChannel(
            [this](v1::Step step) {
              home_.Push(std::move(step));
              return absl::OkStatus();
            },
            2);
      }
      return MakeInProcessChannel(
          [this](v1::Step step) { return second_->worker->Receive(std::move(step)); }, 2);
    };
    environment.show_progress = [](int64_t, int64_t) {};
    environment.report = [box = box.get()](v1::WorkerReport report) {
      EXPECT_TRUE(box->reports.TryPush(std::move(report)));
    };
    box->worker = std::make_unique<Worker>(std::move(environment));
    return box;
  }

  v1::WorkerOrder LoadOrder(uint64_t plan, bool first, bool by_nccl = true) const {
    v1::WorkerOrder order;
    v1::LoadStage& load = *order.mutable_load_stage();
    load.set_plan_version(plan);
    load.mutable_stage()->set_first_layer(first ? 0 : 2);
    load.mutable_stage()->set_end_layer(first ? 2 : 4);
    load.mutable_stage()->set_embeds(first);
    load.mutable_stage()->set_has_head(!first);
    load.mutable_model()->set_config_json(checkpoint_->config_json());
    load.set_kv_budget_bytes(1 << 20);
    load.set_max_step_tokens(8);
    v1::Hop& hop = first ? *load.mutable_next() : *load.mutable_previous();
    hop.set_neighbour(first ? "worker 2 (box-b)" : "worker 1 (box-a)");
    hop.set_by_nccl(by_nccl);
    hop.set_why(by_nccl ? "" : "worker 2 (box-b) has no card");
    return order;
  }

  /// What the coordinator makes of the first worker's invitation.
  v1::WorkerOrder PassOnInvitation(uint64_t plan) {
    const v1::WorkerReport report = first_->NextReport();
    EXPECT_TRUE(report.has_hop_invitation()) << report.failure().message();
    EXPECT_EQ(report.hop_invitation().plan_version(), plan);
    v1::WorkerOrder order;
    order.mutable_join_hop()->set_plan_version(plan);
    order.mutable_join_hop()->set_nccl_unique_id(report.hop_invitation().nccl_unique_id());
    return order;
  }

  void LoadBoth(uint64_t plan) {
    first_->worker->Handle(LoadOrder(plan, true));
    second_->worker->Handle(LoadOrder(plan, false));
    second_->worker->Handle(PassOnInvitation(plan));
    first_->ExpectReady();
    second_->ExpectReady();
  }
  void LoadBothOverTcp(uint64_t plan) {
    first_->worker->Handle(LoadOrder(plan, true, false));
    second_->worker->Handle(LoadOrder(plan, false, false));
    first_->ExpectReady();
    second_->ExpectReady();
  }

  /// Runs a step through both and returns it.
  v1::Step RunStep(uint64_t plan, uint64_t id) {
    v1::Step step;
    step.set_plan_version(plan);
    step.set_step_id(id);
    v1::SequenceSlice& slice = *step.add_slices();
    slice.add_token_ids(5);
    slice.add_token_ids(6);
    slice.add_kv_blocks(0);
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    EXPECT_TRUE(first_->worker->Receive(std::move(step)).ok());
    v1::Step done = *home_.Pop();
    EXPECT_FALSE(done.has_error()) << done.error().message();
    return done;
  }

  const std::unique_ptr<Checkpoint> checkpoint_ =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  const std::shared_ptr<FakeCardTransport> transport_ = std::make_shared<FakeCardTransport>();
  BoundedQueue<v1::Step> home_{10};  // what the last stage sent
  std::unique_ptr<Box> second_ = MakeBox("worker box-b");
  std::unique_ptr<Box> first_ = MakeBox("worker box-a");  // before the second one goes
};

TEST_F(LinkedWorkersTest, JoinTheirHopAndUseIt) {
  LoadBoth(7);
  const v1::Step by_link = RunStep(7, 1);
  LoadBothOverTcp(8);
  EXPECT_EQ(RunStep(8, 1).results(0).logits(), by_link.results(0).logits());
}

TEST_F(LinkedWorkersTest, ANewPlanJoinsAnewAfterOneIsLost) {
  LoadBoth(7);
  const v1::Step before = RunStep(7, 1);
  second_ = MakeBox("worker box-b");  // the old one is gone without a word
  LoadBoth(8);
  EXPECT_EQ(RunStep(8, 1).results(0).logits(), before.results(0).logits());
}

TEST_F(LinkedWorkersTest, DropStopsALoadThatWaitsForItsNeighbour) {
  second_->worker->Handle(LoadOrder(7, false));  // for the invitation
  first_->worker->Handle(LoadOrder(7, true));
  EXPECT_TRUE(first_->NextReport().has_hop_invitation());  // for the other end
  first_->worker->Drop();
  second_->worker->Drop();
  EXPECT_FALSE(first_->reports.PopWithTimeout(absl::ZeroDuration()).has_value());
  EXPECT_FALSE(second_->reports.PopWithTimeout(absl::ZeroDuration()).has_value());
  LoadBoth(8);
}

TEST_F(LinkedWorkersTest, TheSendersFailureIsToldAndBothGoOnOverTcp) {
  LoadBoth(7);
  const v1::Step by_link = RunStep(7, 1);
  transport_->RefuseJoins(/*sends=*/true, absl::UnavailableError("the network is down"));
  second_->worker->Handle(LoadOrder(8, false));
  first_->worker->Handle(LoadOrder(8, true));
  second_->worker->Handle(PassOnInvitation(8));  // it waits for the first one, which fails
  const v1::StageFailure failure = first_->NextReport().failure();
  EXPECT_EQ(failure.unjoined(), v1::HOP_END_NEXT);
  EXPECT_EQ(failure.code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(failure.message(),
            "worker box-a: the hop to worker 2 (box-b) by NCCL: the network is down");
  LoadBothOverTcp(9);
  EXPECT_EQ(RunStep(9, 1).results(0).logits(), by_link.results(0).logits());
}

TEST_F(LinkedWorkersTest, TheReceiversFailureIsToldAndBothGoOnOverTcp) {
  transport_->RefuseJoins(/*sends=*/false, absl::DeadlineExceededError("nobody came"));
  first_->worker->Handle(LoadOrder(7, true));
  second_->worker->Handle(LoadOrder(7, false));
  second_->worker->Handle(PassOnInvitation(7));
  const v1::StageFailure failure = second_->NextReport().failure();
  EXPECT_EQ(failure.unjoined(), v1::HOP_END_PREVIOUS);
  EXPECT_EQ(failure.message(), "worker box-b: the hop from worker 1 (box-a) by NCCL: nobody came");
  LoadBothOverTcp(8);
  RunStep(8, 1);
}

TEST_F(LinkedWorkersTest, AnEndWithoutANetworkInvitesNobody) {
  transport_->RefuseIds(absl::UnavailableError("no interface"));
  first_->worker->Handle(LoadOrder(7, true));
  second_->worker->Handle(LoadOrder(7, false));
  const v1::StageFailure failure = first_->NextReport().failure();
  EXPECT_EQ(failure.unjoined(), v1::HOP_END_NEXT);
  EXPECT_EQ(failure.message(), "worker box-a: the hop to worker 2 (box-b) by NCCL: no interface");
  LoadBothOverTcp(8);
}

TEST_F(LinkedWorkersTest, WhoRequiresALinkFailsByNameWhereItCannotBeJoined) {
  second_ = MakeBox("worker box-b", /*requires_transport=*/true);
  second_->worker->Handle(LoadOrder(7, false));
  v1::WorkerOrder order;
  order.mutable_join_hop()->set_nccl_unique_id("of nobody");
  second_->worker->Handle(order);
  const v1::StageFailure failure = second_->NextReport().failure();
  EXPECT_EQ(failure.unjoined(), v1::HOP_END_UNSPECIFIED);
  // To the coordinator FailedPrecondition would mean another thing.
  EXPECT_EQ(failure.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(failure.message(), AllOf(HasSubstr("the hop from worker 1 (box-a) by NCCL"),
                                       HasSubstr("--transport nccl")));
}

TEST_F(LinkedWorkersTest, WhoRequiresALinkTakesNoOtherHop) {
  first_ = MakeBox("worker box-a", /*requires_transport=*/true);
  first_->worker->Handle(LoadOrder(7, true, /*by_nccl=*/false));
  const v1::StageFailure failure = first_->NextReport().failure();
  EXPECT_EQ(failure.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(failure.message(),
              HasSubstr("the hop to worker 2 (box-b) cannot go by NCCL, as --transport nccl asks "
                        "for: worker 2 (box-b) has no card"));
  LoadBoth(8);
}

TEST_F(LinkedWorkersTest, AJoinHopThatNobodyWaitsForIsNoMatter) {
  v1::WorkerOrder order;
  order.mutable_join_hop()->set_nccl_unique_id("of nobody");
  second_->worker->Handle(order);
  LoadBoth(7);
  second_->worker->Handle(order);
  second_->worker->Handle(order);
  RunStep(7, 1);
}

}  // namespace
}  // namespace caravan
