#include "cluster/known_boxes.h"

#include <set>
#include <string>

#include "cluster/box_json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

TEST(KnownBoxes, AnUnknownOneIsRefusedWithTheKnown) {
  EXPECT_TRUE(FindBox("3060").ok());
  const auto box = FindBox("5090");
  EXPECT_EQ(box.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(box.status().message()), HasSubstr("1660s, 3060"));
  EXPECT_THAT(std::string(FindPart<Box::Disk>("tape").status().message()),
              HasSubstr("no disk is called \"tape\"; there are sata, nvme3"));
}

/// The figures of a box's parts, as JSON has them, that are rates or prices and have no source.
void ExpectSources(const Box& box) {
  const nlohmann::json json = BoxToJson(box);
  for (const auto& part : json.items()) {
    if (!part.value().is_object()) continue;
    for (const auto& figure : part.value().items()) {
      const std::string& name = figure.key();
      const bool needed = name.find("per_second") != std::string::npos || name == "price_yuan" ||
                          name == "cores" || name == "latency_seconds";
      if (!needed) continue;
      EXPECT_TRUE(part.value()["sources"].contains(name)) << box.name << " " << part.key() << name;
    }
  }
}

TEST(KnownBoxes, EachFigureHasASource) {
  for (const Box& box : KnownBoxes()) ExpectSources(box);
  Box box = *FindBox("3060");
  for (const auto& known : KnownParts<Box::Disk>()) {
    box.disk = known.part;
    ExpectSources(box);
  }
  for (const auto& known : KnownParts<Box::Card>()) {
    box.card = known.part;
    ExpectSources(box);
  }
  for (const auto& known : KnownParts<Box::Network>()) {
    box.network = known.part;
    ExpectSources(box);
  }
  for (const auto& known : KnownParts<Box::Memory>()) {
    box.memory = known.part;
    ExpectSources(box);
  }
}

TEST(KnownBoxes, TheGuidesBoxCostsWhatItSays) {
  EXPECT_EQ(FindBox("3060")->price_yuan(), 1200 + 1800 + 600 + 500 + 400 + 150);
  EXPECT_EQ(FindBox("a100")->price_yuan(), 0);  // not known
}

TEST(KnownBoxes, ASlotLimitsWhatIsInIt) {
  const Box::Cpu old = *FindPart<Box::Cpu>("e3-1240v5");
  const Box::Disk fast = *FindPart<Box::Disk>("nvme4");
  EXPECT_EQ(InSlot(fast, old).read_bytes, 3.4e9);
  EXPECT_THAT(InSlot(fast, old).sources["read_bytes_per_second"],
              HasSubstr("the slot's, PCIe 3; by itself 7.0 GB/s: Samsung"));
  EXPECT_EQ(InSlot(*FindPart<Box::Disk>("2-nvme4"), old).read_bytes, 2 * 3.4e9);
  EXPECT_EQ(InSlot(*FindPart<Box::Disk>("sata"), old).read_bytes, 0.56e9);
  EXPECT_EQ(InSlot(*FindPart<Box::Card>("3060"), old).pcie_bytes, CardSlotBytes(3));
  Box::Cpu unknown = old;
  unknown.pcie_generation = 0;
  EXPECT_EQ(InSlot(fast, unknown), fast);
}

}  // namespace
}  // namespace caravan
