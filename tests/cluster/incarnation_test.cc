#include "cluster/incarnation.h"

#include <set>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(IncarnationTest, IsNeverZeroAndDoesNotRepeat) {
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t incarnation = NewIncarnation();
    EXPECT_NE(incarnation, 0u);
    EXPECT_TRUE(seen.insert(incarnation).second) << incarnation;
  }
}

}  // namespace
}  // namespace caravan
