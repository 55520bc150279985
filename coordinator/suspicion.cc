#include "coordinator/suspicion.h"

#include <algorithm>

#include "base/int_math.h"

namespace caravan {

void Suspicion::Interrupt(absl::Span<Suspicion* const> all) {
  for (Suspicion* const each : all) {
    ++each->interruptions_;
    each->alone_ = all.size() == 1 ? each->alone_ + 1 : 0;
  }
  const auto is_suspect = [](const Suspicion* each) {
    return each->interruptions_ >= kSuspectInterruptions;
  };
  const auto suspects = static_cast<int64_t>(std::count_if(all.begin(), all.end(), is_suspect));
  for (Suspicion* const each : all) {
    if (is_suspect(each)) each->group_ = CeilDiv<int64_t>(suspects, 2);
  }
}

}  // namespace caravan
