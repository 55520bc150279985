#ifndef CARAVAN_WORKER_EXPERTS_CACHE_POLICY_H_
#define CARAVAN_WORKER_EXPERTS_CACHE_POLICY_H_

// What an expert's place in memory is worth. A policy turns uses into a score; the expert with the
// lowest one gives way. Experts keep their scores while they are not in memory.

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// One step's use of an expert.
struct ExpertUse {
  int64_t step = 0;  // counts up from 0, over all that a process runs
  int64_t rows = 0;  // that chose it
  float weight = 0;  // the router's, summed over them
};

/// Score of an expert that was never used.
inline constexpr double kNoScore = -1e300;
/// Above every score.
inline constexpr double kAnyScore = std::numeric_limits<double>::infinity();

/// Immutable, so thread-safe.
class CachePolicy {
 public:
  virtual ~CachePolicy() = default;
  virtual absl::string_view name() const = 0;
  /// The score after `use`, which is the first where `score` is kNoScore. Finite. Scores of the
  /// same policy compare at any later step. Had all uses come n steps later, all scores would be
  /// higher by the same, which n is proportional to.
  virtual double AfterUse(double score, const ExpertUse& use) const = 0;
};

inline constexpr absl::string_view kCachePolicyNames[] = {"lru", "lfu", "router"};

/// "lru": the step of the last use. "lfu": how many rows chose it, where a use counts half after
/// some steps. "router": the same, each row counting as much as the router's weight.
/// Errors: InvalidArgument - no such policy; names those that there are.
absl::StatusOr<std::unique_ptr<CachePolicy>> MakeCachePolicy(absl::string_view name);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_CACHE_POLICY_H_
