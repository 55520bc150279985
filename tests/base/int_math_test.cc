#include "base/int_math.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(IntMathTest, RoundsUpToWholeUnits) {
  for (int64_t unit = 1; unit <= 9; ++unit) {
    for (int64_t value = 0; value <= 40; ++value) {
      int64_t units = 0;
      while (units * unit < value) ++units;
      EXPECT_EQ(CeilDiv(value, unit), units) << value << " by " << unit;
      EXPECT_EQ(RoundUp(value, unit), units * unit) << value << " by " << unit;
    }
  }
}

}  // namespace
}  // namespace caravan
