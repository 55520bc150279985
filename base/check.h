#ifndef CARAVAN_BASE_CHECK_H_
#define CARAVAN_BASE_CHECK_H_

// CARAVAN_CHECK(condition): a broken invariant is a bug of ours, so the process says
// where and aborts. Outside input never reaches a check; it gets an absl::Status at the boundary.

#include <cstdio>
#include <cstdlib>

namespace caravan {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace caravan

#define CARAVAN_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::caravan::CheckFailed(__FILE__, __LINE__, #condition))

#endif  // CARAVAN_BASE_CHECK_H_
