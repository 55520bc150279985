#include "coordinator/random_id.h"

#include <random>

#include "absl/strings/str_cat.h"

namespace caravan {

uint64_t RandomNumber() {
  static thread_local std::mt19937_64 generator{[] {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }()};
  return generator();
}

std::string RandomId(absl::string_view prefix) {
  const uint64_t high = RandomNumber();
  return MakeId(prefix, high, RandomNumber());
}

std::string MakeId(absl::string_view prefix, uint64_t high, uint64_t low) {
  return absl::StrCat(prefix, absl::Hex(high, absl::kZeroPad16), absl::Hex(low, absl::kZeroPad16));
}

}  // namespace caravan
