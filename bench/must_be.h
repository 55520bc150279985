#ifndef CARAVAN_BENCH_MUST_BE_H_
#define CARAVAN_BENCH_MUST_BE_H_

// A benchmark that cannot go on says why and ends with code 1.

#include <errno.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace caravan {

inline void MustBe(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", ::program_invocation_short_name,
               std::string(status.message()).c_str());
  std::exit(1);
}

template <typename T>
T MustBe(absl::StatusOr<T> value) {
  MustBe(value.status());
  return *std::move(value);
}

}  // namespace caravan

#endif  // CARAVAN_BENCH_MUST_BE_H_
