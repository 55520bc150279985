#include "coordinator/load_history.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;

class LoadHistoryTest : public ::testing::Test {
 protected:
  LoadHistoryTest() : history_(TestOptions()) {}

  LoadHistory::Options TestOptions() {
    LoadHistory::Options options;
    options.interval = absl::Seconds(2);
    options.num_samples = 3;
    options.first_token_window = absl::Seconds(30);
    options.clock = &clock_;
    return options;
  }

  void SetLoad(uint32_t worker_id, double busy_s, double total_s) {
    v1::WorkerStatus* found = nullptr;
    for (v1::WorkerStatus& worker : *cluster_.mutable_workers()) {
      if (worker.worker_id() == worker_id) found = &worker;
    }
    if (found == nullptr) found = cluster_.add_workers();
    found->set_worker_id(worker_id);
    found->mutable_load()->set_busy_s(busy_s);
    found->mutable_load()->set_total_s(total_s);
  }

  /// A sample, `elapsed` after the last one.
  LoadHistory::Sample TakeAfter(absl::Duration elapsed) {
    clock_.Advance(elapsed);
    history_.Take(stats_, cluster_);
    return history_.Samples().back();
  }

  SimulatedClock clock_;
  LoadHistory history_;
  PipelineStats stats_;
  v1::GetStatusResponse cluster_;
};

TEST_F(LoadHistoryTest, IsDueOnceAnInterval) {
  EXPECT_TRUE(history_.Due());
  history_.Take(stats_, cluster_);
  EXPECT_THAT(history_.Samples(), IsEmpty());
  clock_.Advance(absl::Milliseconds(1999));
  EXPECT_FALSE(history_.Due());
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_TRUE(history_.Due());
}

TEST_F(LoadHistoryTest, RatesAreOverTheTimeThatPassed) {
  stats_.generated_tokens = 1000;
  history_.Take(stats_, cluster_);
  stats_.generated_tokens = 1100;
  stats_.prompt_tokens = 50;
  stats_.interactive = {2, 3};
  stats_.bulk = {10, 20};
  const LoadHistory::Sample sample = TakeAfter(absl::Seconds(4));
  EXPECT_DOUBLE_EQ(sample.generated_tokens_per_s, 25);
  EXPECT_DOUBLE_EQ(sample.prompt_tokens_per_s, 12.5);
  EXPECT_EQ(sample.queued_jobs, 12);
  EXPECT_EQ(sample.running_jobs, 23);
}

TEST_F(LoadHistoryTest, KeepsTheNewest) {
  history_.Take(stats_, cluster_);
  for (int64_t i = 1; i <= 5; ++i) {
    stats_.bulk.queued = i;
    TakeAfter(absl::Seconds(2));
  }
  const std::vector<LoadHistory::Sample> samples = history_.Samples();
  ASSERT_THAT(samples, SizeIs(3));
  EXPECT_EQ(samples.front().queued_jobs, 3);
  EXPECT_EQ(samples.back().queued_jobs, 5);
  EXPECT_EQ(samples.back().at, absl::Seconds(10));
}

TEST_F(LoadHistoryTest, PercentilesAreOfTheWindow) {
  history_.Take(stats_, cluster_);
  EXPECT_EQ(TakeAfter(absl::Seconds(2)).first_token_p50, std::nullopt);
  for (int i = 1; i <= 100; ++i) {
    history_.OnFirstToken(JobPriority::kInteractive, absl::Milliseconds(10 * i));
  }
  LoadHistory::Sample sample = TakeAfter(absl::Seconds(2));
  EXPECT_EQ(sample.first_token_p50, absl::Milliseconds(500));
  EXPECT_EQ(sample.first_token_p99, absl::Milliseconds(990));
  sample = TakeAfter(absl::Seconds(28));
  EXPECT_EQ(sample.first_token_p99, absl::Milliseconds(990));
  sample = TakeAfter(absl::Seconds(2));
  EXPECT_EQ(sample.first_token_p99, std::nullopt);
}

TEST_F(LoadHistoryTest, BulkJobsDoNotCountAsWaitingPeople) {
  history_.Take(stats_, cluster_);
  history_.OnFirstToken(JobPriority::kBulk, absl::Hours(1));
  history_.OnFirstToken(JobPriority::kInteractive, absl::Seconds(1));
  EXPECT_EQ(TakeAfter(absl::Seconds(2)).first_token_p99, absl::Seconds(1));
}

TEST_F(LoadHistoryTest, BusyIsTheShareSinceTheLastSample) {
  SetLoad(1, 10, 20);
  SetLoad(2, 5, 5);
  history_.Take(stats_, cluster_);
  SetLoad(1, 11, 22);
  SetLoad(2, 7, 7);
  EXPECT_THAT(TakeAfter(absl::Seconds(2)).busy_shares, ElementsAre(Pair(1, 0.5), Pair(2, 1.0)));
  EXPECT_THAT(history_.BusyShares(), ElementsAre(Pair(1, 0.5), Pair(2, 1.0)));
}

TEST_F(LoadHistoryTest, SaysNothingOfWorkersThatAreNewOrSpare) {
  SetLoad(1, 3, 9);
  history_.Take(stats_, cluster_);
  SetLoad(2, 1, 2);
  EXPECT_THAT(TakeAfter(absl::Seconds(2)).busy_shares, IsEmpty());
}

}  // namespace
}  // namespace caravan
