#ifndef CARAVAN_BASE_MEDIAN_H_
#define CARAVAN_BASE_MEDIAN_H_

// The middle of measurements, which a few that something disturbed do not move.

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace caravan {

/// The middle value; of an even number of them, halfway between both in the middle.
/// REQUIRES: not empty.
inline double Median(std::vector<double> values) {
  CARAVAN_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace caravan

#endif  // CARAVAN_BASE_MEDIAN_H_
