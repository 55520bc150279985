#include "cli/visit_meter.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/forwarding_backend.h"
#include "kernels/reference/reference_backend.h"

namespace caravan {
namespace {

/// Takes the experts, and computes nothing.
class TakingBackend : public ForwardingBackend {
 public:
  TakingBackend() : ForwardingBackend(MakeReferenceBackend()) {}

  void Route(const RouterShape&, const float*, const float*, int64_t, int32_t*, float*) override {}
  absl::Status RoutedExperts(ExpertBatches& experts, const float*, int64_t, const int32_t*,
                             const float*, int64_t, float*) override {
    while (true) {
      const auto batch = experts.Next();
      if (!batch.ok()) return batch.status();
      if (batch->empty()) return absl::OkStatus();
    }
  }
};

/// One batch, before which 100 bytes are read.
class ReadExperts : public ExpertBatches {
 public:
  explicit ReadExperts(ReadMeter& reads) : reads_(reads) {}

  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
    if (!batch_.empty()) return absl::Span<const LoadedExpert>();
    reads_.Begin();
    reads_.End(100);
    batch_.emplace_back();
    return absl::MakeConstSpan(batch_);
  }
  bool ascending() const override { return true; }

 private:
  ReadMeter& reads_;
  std::vector<LoadedExpert> batch_;
};

TEST(VisitMeterTest, NotesWhatEachVisitTouchesAndReads) {
  ReadMeter reads;
  VisitLog log;
  const auto backend = MakeVisitMeter(std::make_unique<TakingBackend>(), &reads, &log);
  for (std::vector<int32_t> chosen :
       {std::vector<int32_t>{0, 3, 3, 5, 0, 1}, std::vector<int32_t>{2, 7}}) {
    // Read ahead, before the visit.
    reads.Begin();
    reads.End(7);
    backend->Route({}, nullptr, nullptr, 0, chosen.data(), nullptr);
    ReadExperts experts(reads);
    ASSERT_TRUE(backend
                    ->RoutedExperts(experts, nullptr, static_cast<int64_t>(chosen.size()) / 2,
                                    chosen.data(), nullptr, 2, nullptr)
                    .ok());
  }
  const std::vector<ExpertVisit> visits = log.Take();
  ASSERT_EQ(visits.size(), 2u);
  EXPECT_EQ(visits[0].touched, 4);
  EXPECT_EQ(visits[1].touched, 2);
  for (const ExpertVisit& visit : visits) {
    EXPECT_EQ(visit.read_bytes, 100);
    EXPECT_GE(visit.waited, absl::ZeroDuration());
    EXPECT_GE(visit.compute, absl::ZeroDuration());
  }
  EXPECT_TRUE(log.Take().empty());
}

TEST(VisitMeterTest, CountsFromItsOwnRouteOnNotFromThatOfHints) {
  ReadMeter reads;
  VisitLog log;
  const auto backend = MakeVisitMeter(std::make_unique<TakingBackend>(), &reads, &log);
  std::vector<int32_t> chosen = {1, 2};
  std::vector<int32_t> likely = {3, 4};
  // Hints for the first layer with experts, which a layer without them gives.
  backend->Route({}, nullptr, nullptr, 0, likely.data(), nullptr);
  reads.Begin();
  reads.End(7);
  backend->Route({}, nullptr, nullptr, 0, chosen.data(), nullptr);
  reads.Begin();
  reads.End(20);
  backend->Route({}, nullptr, nullptr, 0, likely.data(), nullptr);
  ReadExperts experts(reads);
  ASSERT_TRUE(backend->RoutedExperts(experts, nullptr, 1, chosen.data(), nullptr, 2, nullptr).ok());
  const std::vector<ExpertVisit> visits = log.Take();
  ASSERT_EQ(visits.size(), 1u);
  EXPECT_EQ(visits[0].read_bytes, 120);
  EXPECT_EQ(visits[0].touched, 2);
}

}  // namespace
}  // namespace caravan
