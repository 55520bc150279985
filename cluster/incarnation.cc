#include "cluster/incarnation.h"

#include <random>

namespace caravan {

uint64_t NewIncarnation() {
  std::random_device random;  // the kernel's generator
  while (true) {
    const uint64_t incarnation = (uint64_t{random()} << 32) | random();
    if (incarnation != 0) return incarnation;
  }
}

}  // namespace caravan
