#ifndef CARAVAN_BASE_SORTED_KEYS_H_
#define CARAVAN_BASE_SORTED_KEYS_H_

// The keys of a map that keeps them in no order.

#include <algorithm>
#include <string>
#include <vector>

namespace caravan {

/// Copies, in ascending order.
template <typename Map>
std::vector<std::string> SortedKeys(const Map& map) {
  std::vector<std::string> keys;
  keys.reserve(map.size());
  for (const auto& [key, value] : map) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

}  // namespace caravan

#endif  // CARAVAN_BASE_SORTED_KEYS_H_
