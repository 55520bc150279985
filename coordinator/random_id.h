#ifndef CARAVAN_COORDINATOR_RANDOM_ID_H_
#define CARAVAN_COORDINATOR_RANDOM_ID_H_

// Numbers and names that nobody has drawn before.

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace caravan {

/// Thread-safe.
uint64_t RandomNumber();

/// `prefix` and 32 hexadecimal digits. Thread-safe.
std::string RandomId(absl::string_view prefix);

/// The same from given numbers.
std::string MakeId(absl::string_view prefix, uint64_t high, uint64_t low);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_RANDOM_ID_H_
