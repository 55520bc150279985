// StepLoops whose activations go by a link of their own.

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "cluster/in_process_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/step_memory.h"
#include "tests/support/golden.h"
#include "tests/worker/fake_card_transport.h"
#include "tests/worker/fake_hop.h"
#include "worker/step_loop.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kPlan = 3;
constexpr int kMaxRows = 8;

/// Two stages of a small model: `first` tells its steps to `second`, whose results `home_` has.
class LinkedStagesTest : public ::testing::Test {
 protected:
  std::unique_ptr<Stage> MakeStage(const StageSpec& spec, int slots, bool leaves_hidden) {
    Stage::Options options;
    options.name = "box";
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = kMaxRows;
    options.hidden_slots = slots;
    options.leaves_hidden = leaves_hidden;
    auto stage = Stage::Create(checkpoint_->config(), spec, *checkpoint_, *MakeCpuBackend({}),
                               options, [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  std::unique_ptr<StepLoop> MakeFirst(std::unique_ptr<CardLink> link,
                                      std::unique_ptr<ActivationChannel> next) {
    HopLinks links;
    links.next = std::move(link);
    return std::make_unique<StepLoop>(
        kPlan, MakeStage({0, 2, true, false}, kHiddenSlots, true), std::move(next),
        [this](const absl::Status& why) { broken_.Push(why); }, std::move(links));
  }
  std::unique_ptr<StepLoop> MakeSecond(std::unique_ptr<CardLink> link) {
    HopLinks links;
    links.previous = std::move(link);
    return std::make_unique<StepLoop>(
        kPlan, MakeStage({2, 4, false, true}, kHiddenSlots, false), home_.Connect(),
        [this](const absl::Status& why) { broken_.Push(why); }, std::move(links));
  }

  void Connect() {
    FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
    second_ = MakeSecond(std::move(pair.receives));
    first_ = MakeFirst(std::move(pair.sends), MakeInProcessChannel(
                                                  [this](v1::Step step) {
                                                    {
                                                      MutexLock lock(&mu_);
                                                      headers_.push_back(step);
                                                    }
                                                    return second_->Receive(std::move(step));
                                                  },
                                                  2));
  }
  void TearDown() override {
    if (first_ != nullptr) first_->Stop();
    if (second_ != nullptr) second_->Stop();
    first_.reset();
  }

  /// Tokens at `position` of the one sequence.
  static v1::Step MakeStep(uint64_t id, uint32_t position, int tokens) {
    v1::Step step;
    step.set_plan_version(kPlan);
    step.set_step_id(id);
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(1);
    slice.set_first_position(position);
    for (int i = 0; i < tokens; ++i) slice.add_token_ids(5 + position + static_cast<uint32_t>(i));
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    slice.add_kv_blocks(0);
    return step;
  }

  static std::string ResultsOf(const v1::Step& step) {
    EXPECT_FALSE(step.has_error()) << step.error().message();
    EXPECT_EQ(step.results_size(), 1);
    return step.results_size() == 1 ? step.results(0).SerializeAsString() : "";
  }

  const std::unique_ptr<Checkpoint> checkpoint_ =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  FakeHop home_;
  BoundedQueue<absl::Status> broken_{10};
  Mutex mu_;
  std::vector<v1::Step> headers_ ABSL_GUARDED_BY(mu_);  // that came to `second_`
  std::unique_ptr<StepLoop> second_;
  std::unique_ptr<StepLoop> first_;
};

TEST_F(LinkedStagesTest, ActivationsGoByTheLinkAndResultsAreTheSame) {
  Connect();
  const auto whole = MakeStage({0, 4, true, true}, 1, false);
  // Chunks and single tokens, more of them on the way than there are slots.
  std::vector<v1::Step> steps;
  uint32_t position = 0;
  for (uint64_t id = 1; id <= 20; ++id) {
    const int tokens = id % 3 == 0 ? 1 : static_cast<int>(id % 4) + 1;
    steps.push_back(MakeStep(id, position, tokens));
    position += static_cast<uint32_t>(tokens);
  }
  for (const v1::Step& step : steps) ASSERT_TRUE(first_->Receive(step).ok());
  for (const v1::Step& step : steps) {
    const v1::Step done = home_.Take();
    EXPECT_EQ(done.step_id(), step.step_id());
    EXPECT_FALSE(done.activations_by_nccl());
    EXPECT_EQ(ResultsOf(done), ResultsOf(whole->Run(step)));
  }
  MutexLock lock(&mu_);
  for (const v1::Step& header : headers_) {
    EXPECT_TRUE(header.activations_by_nccl());
    EXPECT_TRUE(header.activations().empty());
  }
}

TEST_F(LinkedStagesTest, StepsWithoutActivationsGoWithoutTheLink) {
  Connect();
  v1::Step failed = MakeStep(1, 0, 2);
  failed.mutable_slices(0)->clear_kv_blocks();  // the stage refuses it
  v1::Step empty = MakeStep(2, 0, 0);
  empty.clear_slices();
  ASSERT_TRUE(first_->Receive(failed).ok());
  ASSERT_TRUE(first_->Receive(empty).ok());
  ASSERT_TRUE(first_->Receive(MakeStep(3, 0, 2)).ok());
  EXPECT_THAT(home_.Take().error().message(), HasSubstr("KV blocks"));
  EXPECT_EQ(home_.Take().step_id(), 2u);
  EXPECT_NE(ResultsOf(home_.Take()), "");
  MutexLock lock(&mu_);
  ASSERT_EQ(headers_.size(), 3u);
  EXPECT_FALSE(headers_[0].activations_by_nccl());
  EXPECT_FALSE(headers_[1].activations_by_nccl());
  EXPECT_TRUE(headers_[2].activations_by_nccl());
}

TEST_F(LinkedStagesTest, ActivationsThatComeWithTheirStepAreTakenTooAndStepsWaitForSlots) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  second_ = MakeSecond(std::move(pair.receives));
  const auto first = MakeStage({0, 2, true, false}, 1, false);
  const auto whole = MakeStage({0, 4, true, true}, 1, false);
  for (uint64_t id = 1; id <= 3 * kHiddenSlots; ++id) {
    ASSERT_TRUE(second_->Receive(first->Run(MakeStep(id, static_cast<uint32_t>(id), 1))).ok());
  }
  for (uint64_t id = 1; id <= 3 * kHiddenSlots; ++id) {
    EXPECT_EQ(ResultsOf(home_.Take()),
              ResultsOf(whole->Run(MakeStep(id, static_cast<uint32_t>(id), 1))));
  }
}

TEST_F(LinkedStagesTest, ActivationsByALinkThatCannotBeAreRefused) {
  const auto refusal = [](StepLoop& loop, v1::Step step) {
    step.set_activations_by_nccl(true);
    const absl::Status refused = loop.Receive(std::move(step));
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    return std::string(refused.message());
  };
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  second_ = MakeSecond(std::move(pair.receives));
  EXPECT_THAT(refusal(*second_, MakeStep(1, 0, kMaxRows + 1)), HasSubstr("9 rows"));
  v1::Step failed = MakeStep(2, 0, 1);
  failed.mutable_error();
  EXPECT_THAT(refusal(*second_, failed), HasSubstr("has none"));
  EXPECT_THAT(refusal(*second_, MakeStep(3, 0, 0)), HasSubstr("has none"));
  first_ = MakeFirst(std::move(pair.sends), home_.Connect());
  EXPECT_THAT(refusal(*first_, MakeStep(1, 0, 1)), HasSubstr("without it"));
}

TEST_F(LinkedStagesTest, StopReleasesWhoWaitsForActivations) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  const CardLink& link = *pair.receives;
  second_ = MakeSecond(std::move(pair.receives));
  absl::Status refused;
  std::thread receiver([&] {
    v1::Step step = MakeStep(1, 0, 1);
    step.set_activations_by_nccl(true);
    refused = second_->Receive(std::move(step));
  });
  FakeCardTransport::WaitForACallThatWaits(link);
  second_->Stop();
  receiver.join();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(broken_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

TEST_F(LinkedStagesTest, StopReleasesASendThatWaitsAndTheStepsBehindIt) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  const CardLink& link = *pair.sends;
  first_ = MakeFirst(std::move(pair.sends), home_.Connect());
  for (uint64_t id = 1; id <= kHiddenSlots + 3; ++id) {
    ASSERT_TRUE(first_->Receive(MakeStep(id, 0, 1)).ok());
  }
  FakeCardTransport::WaitForACallThatWaits(link);
  EXPECT_TRUE(home_.Take().activations_by_nccl());
  first_->Stop();
  EXPECT_FALSE(broken_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

TEST_F(LinkedStagesTest, ABrokenLinkIsToldOnceAndEndsTheIntake) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  first_ = MakeFirst(std::move(pair.sends), home_.Connect());
  pair.receives->Abort();
  ASSERT_TRUE(first_->Receive(MakeStep(1, 0, 1)).ok());
  EXPECT_EQ(broken_.Pop(), absl::UnavailableError("the other end is gone"));
  EXPECT_EQ(first_->Receive(MakeStep(2, 1, 1)).code(), absl::StatusCode::kUnavailable);
  first_->Stop();
  EXPECT_FALSE(broken_.PopWithTimeout(absl::ZeroDuration()).has_value());
}

TEST_F(LinkedStagesTest, ABrokenChannelIsToldThoughTheLinkIsThere) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  first_ = MakeFirst(std::move(pair.sends), home_.Connect());
  home_.Break(absl::UnavailableError("worker b is gone"));
  ASSERT_TRUE(first_->Receive(MakeStep(1, 0, 1)).ok());
  EXPECT_EQ(broken_.Pop(), absl::UnavailableError("worker b is gone"));
}

TEST_F(LinkedStagesTest, ALinkThatBreaksWhileItIsReceivedFromEndsTheStream) {
  FakeCardTransport::Pair pair = FakeCardTransport::MakePair();
  second_ = MakeSecond(std::move(pair.receives));
  pair.sends->Abort();
  v1::Step step = MakeStep(1, 0, 1);
  step.set_activations_by_nccl(true);
  EXPECT_EQ(second_->Receive(std::move(step)),
            absl::UnavailableError("activations of step 1: the other end is gone"));
}

}  // namespace
}  // namespace caravan
