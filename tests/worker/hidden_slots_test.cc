#include "worker/hidden_slots.h"

#include <atomic>
#include <optional>
#include <thread>

#include "base/check.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

/// One that is free.
Array MustTake(HiddenSlots& slots) {
  std::optional<Array> slot = slots.Take();
  CARAVAN_CHECK(slot.has_value());
  return *std::move(slot);
}

TEST(HiddenSlotsTest, EachIsTakenByOneAtATime) {
  const auto slots = *HiddenSlots::Create(HostMemory(), 2, 64);
  const Array first = MustTake(*slots);
  Array second = MustTake(*slots);
  EXPECT_NE(first.data(), second.data());
  EXPECT_EQ(first.bytes(), 64);
  const Array copy = second;
  second = Array();  // not yet the last one
  std::atomic<bool> taken{false};
  std::thread waiter([&] { taken = slots->Take().has_value(); });
  slots->Close();
  waiter.join();
  EXPECT_FALSE(taken);
}

TEST(HiddenSlotsTest, WhatIsGivenBackIsTakenAgain) {
  const auto slots = *HiddenSlots::Create(HostMemory(), 1, 64);
  Array first = MustTake(*slots);
  const std::byte* const data = first.data();
  std::thread waiter([&] { EXPECT_EQ(MustTake(*slots).data(), data); });
  first = Array();
  waiter.join();
}

TEST(HiddenSlotsTest, WhatIsGivenBackAfterItsEndIsFreed) {
  auto slots = *HiddenSlots::Create(HostMemory(), 1, 64);
  Array slot = MustTake(*slots);
  slots->Close();
  slots.reset();
  *slot.data() = std::byte{1};
  slot = Array();
}

TEST(HiddenSlotsTest, MemoryThatIsNotThereIsAnError) {
  EXPECT_FALSE(HiddenSlots::Create(HostMemory(), 1, int64_t{1} << 60).ok());
}

}  // namespace
}  // namespace caravan
