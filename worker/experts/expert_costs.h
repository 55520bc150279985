#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_

// What one routed expert costs on this very box: on the CPU where it lies in the host's memory, on
// the card where it lies in its memory, and to bring it from there to here. And what follows from
// that for the experts of a visit.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace caravan {

/// A value; immutable once filled.
struct ExpertCosts {
  /// Of one expert, among as many as a token chooses, for so many rows.
  struct Point {
    int64_t rows = 0;
    double cpu_seconds = 0;
    double card_seconds = 0;
  };
  std::vector<Point> points;  // rows ascend; at least one
  double copy_seconds = 0;    // from the host's memory to the card's

  /// Between the points on a line, past the last on the last one's; with one point, that. REQUIRES:
  /// rows >= 1.
  double CpuSeconds(int64_t rows) const;
  double CardSeconds(int64_t rows) const;
};

/// What is done with an expert that is not in the card's memory.
enum class ExpertPlace { kCpu, kCopy };

/// A visit's split.
struct ExpertSplit {
  std::vector<ExpertPlace> places;  // as `rows` has them
  double cpu_seconds = 0;           // that the CPU is busy,
  double card_seconds = 0;          // and the card, copies included
  double seconds() const { return cpu_seconds > card_seconds ? cpu_seconds : card_seconds; }
};

/// Gives each expert (rows: how many it has) to whom has it done sooner, the largest first; of
/// equal ones to the CPU. card_busy_seconds: what the card computes beside that; at most max_copies
/// are copied. Depends on the arguments alone, so the same visit is split alike.
ExpertSplit SplitExperts(const ExpertCosts& costs, absl::Span<const int64_t> rows,
                         double card_busy_seconds, int64_t max_copies);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_
