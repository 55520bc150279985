#include "cluster/purchases.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cluster/known_boxes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Names(const std::vector<Purchase>& purchases) {
  std::vector<std::string> names;
  for (const Purchase& purchase : purchases) names.push_back(purchase.what);
  return names;
}

const Purchase& Named(const std::vector<Purchase>& purchases, const std::string& what) {
  const auto it = std::find_if(purchases.begin(), purchases.end(),
                               [&](const Purchase& purchase) { return purchase.what == what; });
  EXPECT_NE(it, purchases.end()) << what;
  return *it;
}

TEST(Purchases, EachChangesTheBoxesThatItIsFor) {
  const std::vector<BoxCount> boxes = {{*FindBox("3060"), 2}, {*FindBox("cpu"), 1}};
  const std::vector<Purchase> all = PossiblePurchases(boxes);
  const Purchase& box = Named(all, "another box 3060");
  EXPECT_EQ(box.price_yuan, 4650);
  EXPECT_EQ(box.boxes[0].count, 3);
  const Purchase& drive =
      Named(all, "one more drive (NVMe) with the same files in each of 2 boxes 3060");
  EXPECT_EQ(drive.price_yuan, 1000);
  EXPECT_EQ(drive.boxes[0].box.disk.read_bytes, 2 * 3.4e9);
  EXPECT_EQ(drive.boxes[0].box.disk.drives, 2);
  EXPECT_EQ(drive.boxes[1].box, boxes[1].box);
  const Purchase& memory = Named(all, "32 GiB more memory in box cpu");
  EXPECT_EQ(memory.price_yuan, 600);
  EXPECT_EQ(memory.boxes[1].box.memory.bytes - boxes[1].box.memory.bytes, int64_t{32} << 30);
  const Purchase& card =
      Named(all, "NVIDIA GeForce RTX 4090 in the card's place in each of 2 boxes 3060");
  EXPECT_EQ(card.price_yuan, 24000);
  EXPECT_EQ(card.boxes[0].box.card.pcie_bytes, CardSlotBytes(3));
  EXPECT_EQ(Named(all, "a card, NVIDIA GeForce GTX 1660 SUPER in box cpu").price_yuan, 900);
}

TEST(Purchases, WhatWouldBeNoBetterIsNotOffered) {
  // Its drive is as fast as the slot lets any be, and the smaller card no gain.
  EXPECT_THAT(Names(PossiblePurchases(std::vector<BoxCount>{{*FindBox("3060"), 1}})),
              Not(Contains(HasSubstr("in the drive's place"))));
  EXPECT_THAT(Names(PossiblePurchases(std::vector<BoxCount>{{*FindBox("3060"), 1}})),
              Not(Contains(HasSubstr("1660"))));
  Box sata = *FindBox("cpu");
  sata.disk = *FindPart<Box::Disk>("sata");
  EXPECT_THAT(Names(PossiblePurchases(std::vector<BoxCount>{{sata, 1}})),
              Contains("an NVMe of PCIe 4 in the drive's place in box cpu"));
}

TEST(Purchases, MostForTheMoneyComesFirstAndWhatIsRentedLast) {
  SyntheticModel::Options shape;
  shape.config_path = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
  shape.types = {DType::kQ4_K, DType::kQ4_K};
  const auto model = SyntheticModel::Create(shape);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto cost = CostOfStoredModel(**model);
  ASSERT_TRUE(cost.ok()) << cost.status();
  std::vector<BoxCount> boxes = {{*FindBox("3060"), 1}};
  ForecastLoad load;
  load.decode = {.jobs = 8, .context_tokens = 2048};
  const auto now = ForecastBoxes((*model)->config(), *cost, boxes, load);
  ASSERT_TRUE(now.ok()) << now.status();
  const double rate = now->together.tokens_per_second;
  const auto gains = RankPurchases((*model)->config(), *cost, boxes, load, rate);
  ASSERT_GE(gains.size(), 5u);
  EXPECT_TRUE(gains.back().purchase.by_the_hour);
  for (size_t i = 0; i + 2 < gains.size(); ++i) {
    EXPECT_GE(gains[i].gain_per_1000_yuan(), gains[i + 1].gain_per_1000_yuan());
  }
  for (const PurchaseGain& gain : gains) {
    EXPECT_GE(gain.gain, -1e-9) << gain.purchase.what;  // whatever is bought may stay unused
    const auto with = ForecastBoxes((*model)->config(), *cost, gain.purchase.boxes, load);
    ASSERT_TRUE(with.ok());
    EXPECT_EQ(gain.gain, with->together.tokens_per_second - rate);
  }
  // The disk is the limit of one box, so a second drive is the first thing to buy.
  EXPECT_THAT(gains.front().purchase.what, HasSubstr("one more drive"));
  EXPECT_NEAR(gains.front().tokens_per_second, 2 * rate, 0.1 * rate);
}

TEST(Purchases, MayMakeAModelFit) {
  SyntheticModel::Options shape;
  shape.config_path = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
  shape.types = {DType::kQ4_K, DType::kQ4_K};
  const auto model = SyntheticModel::Create(shape);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto cost = CostOfStoredModel(**model);
  ASSERT_TRUE(cost.ok()) << cost.status();
  Box box = *FindBox("3060");
  box.disk.bytes = int64_t{250} << 30;  // of 352 GiB
  ForecastLoad load;
  load.decode = {.jobs = 1, .context_tokens = 2048};
  const std::vector<BoxCount> boxes = {{box, 1}};
  EXPECT_THAT(std::string(ForecastBoxes((*model)->config(), *cost, boxes, load).status().message()),
              HasSubstr(" of disk"));
  const auto gains = RankPurchases((*model)->config(), *cost, boxes, load, 0);
  ASSERT_FALSE(gains.empty());
  for (const PurchaseGain& gain : gains) EXPECT_GT(gain.gain, 0) << gain.purchase.what;
}

}  // namespace
}  // namespace caravan
