// Wherever experts lie and whoever computes them, the sum is that of the CPU alone.

#include "worker/experts/card_experts.h"

#include <cmath>
#include <numeric>

#include "base/status_macros.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/fake_card.h"
#include "tests/support/golden.h"
#include "tests/worker/experts/expert_store_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

// 600 rows are more than kMaxUnorderedShares.
constexpr int kMaxRows = 600;

// Three sums of a few floats each, added in another order.
constexpr double kTolerance = 1e-6;

ExpertCosts CostsOf(double cpu_seconds, double copy_seconds) {
  return {{{1, cpu_seconds, 0.1}}, copy_seconds};
}

class CardExpertsTest : public ExpertStoreTest {
 protected:
  static constexpr int kLayer = 1;

  /// A store with so many slots, and so many on the card.
  void Make(int host_slots, int card_slots) {
    experts_.reset();
    store_ = MakeStore(host_slots, Options());
    CardExperts::Options options;
    options.budget_bytes = card_slots * (toy_->run_bytes() + 256);
    options.max_rows = kMaxRows;
    auto experts = CardExperts::Create(toy_->config(), *store_, card_, *cpu_, options);
    CARAVAN_CHECK(experts.ok());
    experts_ = *std::move(experts);
    Fill(x_, kMaxRows * toy_->config().hidden_size);
    Fill(weights_, kMaxRows * PackedToy::kChosen);
    Fill(out_, kMaxRows * toy_->config().hidden_size);
  }

  void Fill(Array& array, int64_t count) {
    array = *AllocateValues<float>(card_.memory(), count);
    for (int64_t i = 0; i < count; ++i) array.floats()[i] = std::sin(static_cast<float>(i));
  }

  std::vector<float> Host(const Array& array, int64_t count) {
    return std::vector<float>(array.floats(), array.floats() + count);
  }

  /// Has the visit done; `sum` is what it adds.
  absl::Status Visit(int layer, const Choice& choice, int64_t rows, std::vector<float>& sum) {
    const int64_t count = rows * toy_->config().hidden_size;
    CARAVAN_RETURN_IF_ERROR(card_.memory().Clear(out_.data(), out_.bytes()));
    CARAVAN_RETURN_IF_ERROR(card_.memory().CopyIn(
        choice.weights.data(), static_cast<int64_t>(choice.weights.size() * sizeof(float)),
        weights_.data()));
    CARAVAN_RETURN_IF_ERROR(experts_->Begin(layer, choice.ids, choice.weights, rows, x_.floats()));
    CARAVAN_RETURN_IF_ERROR(experts_->Run(x_.floats(), weights_.floats(), out_.floats()));
    sum = Host(out_, count);
    return absl::OkStatus();
  }

  std::vector<float> Expected(int layer, const Choice& choice, int64_t rows) {
    const std::unique_ptr<ExpertStore> store = MakeStore(PackedToy::kAllExperts, Options());
    std::vector<float> sum(static_cast<size_t>(rows * toy_->config().hidden_size));
    const std::vector<float> x = Host(x_, rows * toy_->config().hidden_size);
    EXPECT_TRUE(cpu_->RoutedExperts(store->Visit(layer, choice.ids, choice.weights), x.data(), rows,
                                    choice.ids.data(), choice.weights.data(), PackedToy::kChosen,
                                    sum.data())
                    .ok());
    return sum;
  }

  void ExpectRight(int layer, const Choice& choice, int64_t rows) {
    std::vector<float> sum;
    const absl::Status done = Visit(layer, choice, rows, sum);
    ASSERT_TRUE(done.ok()) << done;
    EXPECT_LE(RelativeError(sum, Expected(layer, choice, rows)), kTolerance);
  }

  FakeCard card_{*MakeCpuBackend({})};
  std::unique_ptr<Backend> cpu_ = *MakeCpuBackend({});
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<CardExperts> experts_;  // after the store, which it borrows
  Array x_;
  Array weights_;
  Array out_;
};

TEST_F(CardExpertsTest, GiveTheSumOfTheCpuWhereverTheyLie) {
  Rng rng(1);
  for (const int host_slots : {PackedToy::kChosen, 20, PackedToy::kAllExperts}) {
    for (const int card_slots : {2, 9, 30, PackedToy::kAllExperts}) {
      for (const auto& [cpu, copy] :
           {std::pair{1.0, 0.5}, std::pair{1.0, 5.0}, std::pair{1.0, 0.01}, std::pair{0.01, 1.0}}) {
        SCOPED_TRACE(
            absl::StrCat(host_slots, " and ", card_slots, " slots, cpu ", cpu, ", copy ", copy));
        Make(host_slots, card_slots);
        experts_->SetCosts(CostsOf(cpu, copy));
        for (const int rows : {1, 3, 40, kMaxRows, 1}) {
          for (const int layer : {1, 2, 3}) ExpectRight(layer, Choice(rng, rows), rows);
        }
      }
    }
  }
}

TEST_F(CardExpertsTest, CountWhoComputedWhat) {
  Make(PackedToy::kAllExperts, 16);
  ASSERT_TRUE(experts_->Warm([](int64_t, int64_t) { return true; }).ok());
  experts_->SetCosts(CostsOf(1, 100));
  // Two of 16 slots are for passing; the first 14 experts of layer 1 are there.
  ExpectRight(kLayer, Choice({0, 5, 13, 14}), 1);
  CardExperts::Counters counters = experts_->counters();
  EXPECT_EQ(counters.hits, 3);
  EXPECT_EQ(counters.on_cpu, 1);
  EXPECT_EQ(counters.copies, 0);
  EXPECT_EQ(counters.copied_bytes, 0);
  experts_->SetCosts(CostsOf(1, 0.1));
  ExpectRight(kLayer, Choice({0, 5, 13, 15}), 1);
  counters = experts_->counters();
  EXPECT_EQ(counters.hits, 6);
  EXPECT_EQ(counters.on_cpu, 1);
  EXPECT_EQ(counters.copies, 1);
  EXPECT_GE(counters.copied_bytes, toy_->run_bytes());
}

TEST_F(CardExpertsTest, WhatIsOftenUsedComesToTheCard) {
  Make(PackedToy::kAllExperts, 10);
  // The CPU has an expert done while it is copied.
  experts_->SetCosts(CostsOf(1, 0.95));
  const Choice often({3, 7, 9, 12});
  for (int i = 0; i < 20; ++i) ExpectRight(kLayer, often, 1);
  const CardExperts::Counters before = experts_->counters();
  ExpectRight(kLayer, often, 1);
  EXPECT_EQ(experts_->counters().hits - before.hits, 4);
  EXPECT_EQ(experts_->counters().on_cpu, before.on_cpu);
}

TEST_F(CardExpertsTest, ForFixedPlacesResultsAreTheSameBits) {
  Make(PackedToy::kAllExperts, 16);
  ASSERT_TRUE(experts_->Warm([](int64_t, int64_t) { return true; }).ok());
  experts_->SetCosts(CostsOf(1, 1000));  // nothing moves
  Rng rng(2);
  const Choice choice(rng, 30);
  std::vector<float> first;
  std::vector<float> again;
  ASSERT_TRUE(Visit(kLayer, choice, 30, first).ok());
  ASSERT_TRUE(Visit(kLayer, Choice(rng, 5), 5, again).ok());
  ASSERT_TRUE(Visit(kLayer, choice, 30, again).ok());
  EXPECT_TRUE(first == again);
}

TEST_F(CardExpertsTest, AnExpertThatCannotBeReadFailsItsVisitAlone) {
  for (const double copy : {0.1, 10.0}) {
    Make(PackedToy::kChosen, 8);
    experts_->SetCosts(CostsOf(1, copy));
    ExpectRight(kLayer, Choice({0, 1, 2, 3}), 1);
    toy_->Flip(2, 6);
    std::vector<float> sum;
    const absl::Status failed = Visit(2, Choice({4, 5, 6, 7}), 1, sum);
    toy_->Flip(2, 6);
    EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss) << failed;
    EXPECT_THAT(failed.message(), HasSubstr("expert 6"));
    ExpectRight(2, Choice({4, 5, 6, 7}), 1);
    ExpectRight(3, Choice({4, 5, 6, 7}), 1);
  }
}

TEST_F(CardExpertsTest, AVisitThatIsLeftHoldsNothing) {
  Make(PackedToy::kAllExperts, 4);
  experts_->SetCosts(CostsOf(1, 0.01));
  for (int i = 0; i < 50; ++i) {
    const Choice choice({i % 13, i % 13 + 1, i % 13 + 2, i % 13 + 3});
    ASSERT_TRUE(experts_->Begin(1 + i % 3, choice.ids, choice.weights, 1, x_.floats()).ok());
  }
  // Slots that were still held would take nothing in.
  for (int i = 0; i < 3; ++i) ExpectRight(kLayer, Choice({0, 1, 2, 3}), 1);
  EXPECT_GT(experts_->counters().hits, 0);
}

TEST_F(CardExpertsTest, MeasuredCostsAreThoseOfThisMachine) {
  Make(PackedToy::kAllExperts, 16);
  const absl::StatusOr<ExpertCosts> costs = experts_->MeasureCosts();
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_GT(costs->copy_seconds, 0);
  ASSERT_GE(costs->points.size(), 2u);
  EXPECT_EQ(costs->points[0].rows, 1);
  for (const ExpertCosts::Point& point : costs->points) {
    EXPECT_GT(point.cpu_seconds, 0);
    EXPECT_GT(point.card_seconds, 0);
    EXPECT_LE(point.rows, kMaxRows);
  }
  experts_->SetCosts(*costs);
  ExpectRight(kLayer, Choice({0, 5, 13, 14}), 1);
}

TEST_F(CardExpertsTest, ABudgetOfOneExpertIsRefusedInNumbers) {
  store_ = MakeStore(PackedToy::kAllExperts, Options());
  CardExperts::Options options;
  options.budget_bytes = toy_->run_bytes() + 256;
  options.max_rows = 1;
  const auto experts = CardExperts::Create(toy_->config(), *store_, card_, *cpu_, options);
  EXPECT_EQ(experts.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(experts.status().message(), HasSubstr("but two take"));
}

}  // namespace
}  // namespace caravan
