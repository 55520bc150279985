#include "cluster/arrival_meter.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(ArrivalMeterTest, CountsFromTheEndOfOneMessageToTheEndOfAnother) {
  ArrivalMeter meter(absl::Seconds(4));
  // What buffers took in at once comes first, and is not counted, nor what follows within a second.
  EXPECT_FALSE(meter.Arrived(1000, absl::Seconds(10)));
  EXPECT_FALSE(meter.Arrived(1000, absl::Seconds(10.5)));
  EXPECT_FALSE(meter.Arrived(1000, absl::Seconds(11)));
  EXPECT_EQ(meter.bytes(), 0);
  EXPECT_FALSE(meter.Arrived(100, absl::Seconds(12)));
  EXPECT_FALSE(meter.Arrived(100, absl::Seconds(14.9)));
  EXPECT_TRUE(meter.Arrived(100, absl::Seconds(15)));
  EXPECT_EQ(meter.bytes(), 300);
  EXPECT_EQ(meter.time(), absl::Seconds(4));
}

TEST(ArrivalMeterTest, OnASlowLinkCountsAtLeastOneWholeMessage) {
  ArrivalMeter meter(absl::Seconds(1));
  EXPECT_FALSE(meter.Arrived(100, absl::Seconds(0)));
  EXPECT_FALSE(meter.Arrived(100, absl::Seconds(30)));
  EXPECT_TRUE(meter.Arrived(100, absl::Seconds(60)));
  EXPECT_EQ(meter.bytes(), 100);
  EXPECT_EQ(meter.time(), absl::Seconds(30));
}

}  // namespace
}  // namespace caravan
