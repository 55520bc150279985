#include "base/named_thread.h"

#include <sys/resource.h>

namespace caravan {

void YieldToOthers() {
  // A twentieth of what one that does not yield gets. (The idle class would get nothing for hours
  // where all cores are kept busy.) It can only fail where the thread yields more already.
  constexpr int kNice = 13;
  static_cast<void>(::setpriority(PRIO_PROCESS, 0, kNice));
}

}  // namespace caravan
