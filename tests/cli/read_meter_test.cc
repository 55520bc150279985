#include "cli/read_meter.h"

#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(ReadMeterTest, TimeInWhichSeveralReadsWereUnderWayCountsOnce) {
  SimulatedClock clock;
  ReadMeter all(nullptr, clock);
  ReadMeter one(&all, clock);
  ReadMeter other(&all, clock);
  one.Begin();
  clock.Advance(absl::Seconds(1));
  other.Begin();
  clock.Advance(absl::Seconds(2));
  one.End(100);
  clock.Advance(absl::Seconds(4));
  EXPECT_EQ(other.counters().busy, absl::Seconds(6));  // it is under way still
  other.End(10);
  clock.Advance(absl::Seconds(8));
  EXPECT_EQ(one.counters().busy, absl::Seconds(3));
  EXPECT_EQ(one.counters().read_bytes, 100);
  EXPECT_EQ(other.counters().busy, absl::Seconds(6));
  EXPECT_EQ(all.counters().busy, absl::Seconds(7));
  EXPECT_EQ(all.counters().read_bytes, 110);
  all.WaitUntilIdle();
}

/// Keeps what it is asked for.
class KeepingQueue : public ReadQueue {
 public:
  explicit KeepingQueue(std::vector<Done>& reads) : reads_(reads) {}

  absl::string_view Name() const override { return "keeping"; }
  Id Submit(const FileRead&, ReadPriority, Done done) override {
    reads_.push_back(std::move(done));
    return reads_.size();
  }
  void Promote(Id) override {}
  bool Cancel(Id id) override { return id == 1; }
  Counters counters() const override { return {}; }

 private:
  std::vector<Done>& reads_;
};

TEST(ReadMeterTest, ReadsThatFailOrAreTakenBackEndWithoutBytes) {
  SimulatedClock clock;
  ReadMeter meter(nullptr, clock);
  std::vector<ReadQueue::Done> reads;
  const auto queue = MakeMeteredQueue(std::make_unique<KeepingQueue>(reads), &meter);
  EXPECT_EQ(queue->Name(), "keeping");
  std::vector<std::byte> memory(4096);
  const FileRead read = {nullptr, 0, absl::MakeSpan(memory)};
  std::vector<absl::StatusCode> ends;
  for (int i = 0; i < 3; ++i) {
    queue->Submit(read, ReadPriority::kGuess, [&](const absl::Status& status) {
      // Whoever is told of an end finds it counted.
      EXPECT_EQ(meter.counters().read_bytes, status.ok() ? 4096 : 0);
      ends.push_back(status.code());
    });
  }
  clock.Advance(absl::Seconds(1));
  EXPECT_TRUE(queue->Cancel(1));
  EXPECT_FALSE(queue->Cancel(2));
  clock.Advance(absl::Seconds(1));
  reads[1](absl::DataLossError("the disk failed"));
  reads[2](absl::OkStatus());
  clock.Advance(absl::Seconds(1));
  EXPECT_EQ(meter.counters().busy, absl::Seconds(2));
  EXPECT_EQ(meter.counters().read_bytes, 4096);
  EXPECT_EQ(ends, (std::vector{absl::StatusCode::kDataLoss, absl::StatusCode::kOk}));
}

}  // namespace
}  // namespace caravan
