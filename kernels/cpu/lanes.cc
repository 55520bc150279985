#include "kernels/cpu/lanes.h"

#include <algorithm>
#include <atomic>

namespace caravan {
namespace {

// Waking a thread takes 10 to 50 us, in which one thread does 100 to 500 thousand multiply-adds.
constexpr int64_t kWorkPerLane = 300'000;

}  // namespace

void Lanes::ForEach(int64_t count, int64_t work,
                    absl::FunctionRef<void(int64_t, LaneScratch&)> body) {
  const int64_t lanes = std::clamp<int64_t>(std::min(work / kWorkPerLane, count), 1, num_threads());
  std::atomic<int64_t> next{0};
  // A lane is a scratch: it takes items until none is left, so one that comes late finds none.
  pool_.ParallelFor(lanes, 1, [&](int64_t first_lane, int64_t end_lane) {
    for (int64_t lane = first_lane; lane < end_lane; ++lane) {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        body(item, scratch_[lane]);
      }
    }
  });
}

}  // namespace caravan
