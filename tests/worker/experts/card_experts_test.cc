// Wherever experts lie and whoever computes them, the sum is that of the CPU alone.

#include "worker/experts/card_experts.h"

#include <cmath>
#include <numeric>

#include "base/cpu_model.h"
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
  return {.points = {{.rows = 1,
                      .cpu_seconds = cpu_seconds,
                      .cpu_beside_seconds = cpu_seconds,
                      .copy_beside_seconds = copy_seconds,
                      .card_seconds = 0.1}},
          .copy_seconds = copy_seconds};
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
    for (const int card_slots : {3, 9, 30, PackedToy::kAllExperts}) {
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

TEST_F(CardExpertsTest, MoreThanPassAtATimeAreCopiedInAVisit) {
  Rng rng(3);
  const Choice choice(rng, 20);
  ASSERT_GT(choice.needed.size(), 8u);
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {
    Make(PackedToy::kAllExperts, CardExperts::kLeastSlots);
    ASSERT_TRUE(store_->Warm([](int64_t, int64_t) { return true; }).ok());
    experts_->SetCosts(CostsOf(1, 0.001));
    std::vector<float> sum;
    ASSERT_TRUE(Visit(kLayer, choice, 20, sum).ok());
    EXPECT_LE(RelativeError(sum, Expected(kLayer, choice, 20)), kTolerance);
    EXPECT_GT(experts_->counters().copies, 6);
    EXPECT_GT(experts_->counters().on_cpu, 0);
    EXPECT_GT(experts_->counters().took, absl::ZeroDuration());
    // And for the same places the same bits.
    if (run == 0) first = sum;
    EXPECT_TRUE(sum == first);
  }
}

TEST_F(CardExpertsTest, ForetellsByTheCosts) {
  Make(PackedToy::kAllExperts, 16);
  ASSERT_TRUE(experts_->Warm([](int64_t, int64_t) { return true; }).ok());
  ExpertCosts costs = CostsOf(1, 100);
  costs.visit_seconds = 7;
  costs.visit_row_seconds = 0.5;
  experts_->SetCosts(costs);
  // Two of the four lie on the card; nothing is copied.
  ExpectRight(kLayer, Choice({12, 13, 14, 15}), 1);
  EXPECT_EQ(experts_->counters().foretold, absl::Seconds(9.5));
  // All lie there: the CPU shares nothing.
  ExpectRight(kLayer, Choice({0, 1, 2, 3}), 1);
  EXPECT_EQ(experts_->counters().foretold, absl::Seconds(9.5));
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
    EXPECT_GE(point.cpu_beside_seconds, point.cpu_seconds);
    EXPECT_GE(point.copy_beside_seconds, costs->copy_seconds);
  }
  EXPECT_GE(costs->visit_seconds, 0);
  EXPECT_GE(costs->visit_row_seconds, 0);
  // Nobody used what was measured with.
  EXPECT_EQ(store_->cache().score({kLayer, 0}), kNoScore);
  experts_->SetCosts(*costs);
  ExpectRight(kLayer, Choice({0, 5, 13, 14}), 1);
}

TEST_F(CardExpertsTest, CostsDependOnCardCpuAndExperts) {
  Make(PackedToy::kAllExperts, 16);
  const std::string all = experts_->CostsDependOn();
  for (const std::string& part :
       {card_.Name(), cpu_->Name(), CpuModel(), absl::StrCat(toy_->run_bytes(), " bytes"),
        std::string("4 a token"), absl::StrCat(kMaxRows, " rows")}) {
    EXPECT_THAT(all, HasSubstr(part));
  }
}

TEST_F(CardExpertsTest, ABudgetOfTwoExpertsIsRefusedInNumbers) {
  store_ = MakeStore(PackedToy::kAllExperts, Options());
  CardExperts::Options options;
  options.budget_bytes = 2 * (toy_->run_bytes() + 256);
  options.max_rows = 1;
  const auto experts = CardExperts::Create(toy_->config(), *store_, card_, *cpu_, options);
  EXPECT_EQ(experts.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(experts.status().message(), HasSubstr("but 3 take"));
}

}  // namespace
}  // namespace caravan
