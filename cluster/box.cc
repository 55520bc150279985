#include "cluster/box.h"

#include <algorithm>

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

}  // namespace

double Box::price_yuan() const {
  double sum = 0;
  for (const Part* part : {static_cast<const Part*>(&cpu), static_cast<const Part*>(&memory),
                           static_cast<const Part*>(&disk)}) {
    if (part->price_yuan == 0) return 0;
    sum += part->price_yuan;
  }
  if (card.count > 0 && card.price_yuan == 0) return 0;
  // A network that costs nothing came with the board.
  return sum + card.count * card.price_yuan + network.price_yuan;
}

int64_t WorkerMemory(int64_t total_bytes) {
  return total_bytes - std::min(8 * kGiB, total_bytes / 4);
}

int64_t WorkerVram(int64_t total_bytes) { return std::max<int64_t>(0, total_bytes - kGiB); }

}  // namespace caravan
