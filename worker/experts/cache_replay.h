#ifndef CARAVAN_WORKER_EXPERTS_CACHE_REPLAY_H_
#define CARAVAN_WORKER_EXPERTS_CACHE_REPLAY_H_

// What a cache would have hit and read, had it been there when a stage's routing was observed.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/experts/expert_cache.h"
#include "worker/experts/routing_observer.h"

namespace caravan {

/// Steps of more rows are prompts': there a layer's visit comes near to all its experts.
inline constexpr int64_t kMaxDecodeRows = 16;

/// Keeps all that it observes: 12 bytes for each expert that a layer chose for a step. Used by one
/// thread at a time.
class CacheReplay : public RoutingObserver {
 public:
  struct Counts {
    int64_t tokens = 0;
    int64_t uses = 0;  // of an expert by a layer, whatever the rows that share it
    int64_t hits = 0;  // those that found it in memory; the others had to read it
    int64_t reads() const { return uses - hits; }
  };
  struct Result {
    Counts decode;
    Counts prompt;
    int64_t reads() const { return decode.reads() + prompt.reads(); }
  };

  /// shape: of the caches that are compared, whatever their slots.
  explicit CacheReplay(const ExpertCache::Shape& shape);

  /// REQUIRES: layers and experts are the shape's.
  void OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                 absl::Span<const float> weights) override;

  /// Runs all through `cache`, as the store does: a layer's visit counts its uses, holds what is in
  /// memory, reads the rest, and keeps of this what is worth more than what would give way to it.
  Result Run(ExpertCache& cache) const;
  /// The fewest reads that any choice of what stays could lead to (Belady, "A study of replacement
  /// algorithms for a virtual-storage computer", 1966), what is read being free not to stay.
  Result RunOptimum(int num_slots) const;

  const ExpertCache::Shape& shape() const { return shape_; }

 private:
  struct Use {
    int32_t expert = 0;  // within its layer
    int32_t rows = 0;
    float weight = 0;
  };
  struct Visit {
    int64_t step = 0;
    int64_t rows = 0;
    int layer = 0;
    size_t uses_begin = 0;  // they end where the next visit's begin
  };

  absl::Span<const Use> UsesOf(size_t visit) const;
  /// Counts its tokens; its uses are for the caller to count.
  Counts& CountVisit(const Visit& visit, Result& result) const;

  const ExpertCache::Shape shape_;
  std::vector<Visit> visits_;
  std::vector<Use> uses_;
  std::vector<Use> by_expert_;  // scratch of OnRouting: all zero between calls
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_CACHE_REPLAY_H_
