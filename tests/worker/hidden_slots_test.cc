#include "worker/hidden_slots.h"

#include <atomic>
#include <optional>
#include <thread>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(HiddenSlotsTest, EachIsTakenByOneAtATime) {
  const auto slots = *HiddenSlots::Create(HostMemory(), 2, 64);
  std::optional<Array> first = slots->Take();
  std::optional<Array> second = slots->Take();
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_NE(first->data(), second->data());
  EXPECT_EQ(first->bytes(), 64);
  const std::byte* const data = second->data();
  const Array copy = *second;
  second.reset();  // not yet the last one
  std::atomic<bool> taken{false};
  std::thread waiter([&] {
    const std::optional<Array> third = slots->Take();
    EXPECT_FALSE(third.has_value());
    taken = true;
  });
  EXPECT_FALSE(taken);
  slots->Close();
  waiter.join();
  EXPECT_EQ(copy.data(), data);
}

TEST(HiddenSlotsTest, WhatIsGivenBackIsTakenAgain) {
  const auto slots = *HiddenSlots::Create(HostMemory(), 1, 64);
  std::optional<Array> first = slots->Take();
  const std::byte* const data = first->data();
  std::thread waiter([&] {
    const std::optional<Array> second = slots->Take();
    ASSERT_TRUE(second.has_value());
    EXPECT_EQ(second->data(), data);
  });
  first.reset();
  waiter.join();
}

TEST(HiddenSlotsTest, WhatIsGivenBackAfterItsEndIsFreed) {
  auto slots = *HiddenSlots::Create(HostMemory(), 1, 64);
  std::optional<Array> slot = slots->Take();
  slots->Close();
  slots.reset();
  *slot->data() = std::byte{1};
  slot.reset();
}

TEST(HiddenSlotsTest, MemoryThatIsNotThereIsAnError) {
  EXPECT_FALSE(HiddenSlots::Create(HostMemory(), 1, int64_t{1} << 60).ok());
}

}  // namespace
}  // namespace caravan
