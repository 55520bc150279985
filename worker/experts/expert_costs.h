#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_

// What routed experts cost on this very box: on the CPU where they lie in the host's memory, on the
// card where they lie in its memory, and to bring them from there to here. And what follows from
// that for the experts of a visit.
//
// The CPU and the copies to the card share the host's memory, so either is slower while the other
// is at work. A visit keeps both busy as long as it can; costs are known for that and for either
// alone.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace caravan {

/// A value; immutable once filled.
struct ExpertCosts {
  /// Of one expert, among as many as a token chooses, which have so many rows each on average, as
  /// unevenly as rows choose.
  struct Point {
    int64_t rows = 0;
    double cpu_seconds = 0;          // alone
    double cpu_beside_seconds = 0;   // while experts are copied
    double copy_beside_seconds = 0;  // of a copy meanwhile
    double card_seconds = 0;
  };
  std::vector<Point> points;     // rows ascend; at least one
  double copy_seconds = 0;       // from the host's memory to the card's, alone
  double visit_seconds = 0;      // of a visit, beside its experts: launches, waits
  double visit_row_seconds = 0;  // and for each of its rows: the CPU's sum goes to the card

  /// A cost between the points on a line, past the last on the last one's, where more rows never
  /// take less; with one point, that. REQUIRES, here and below: rows >= 1.
  double At(double rows, double Point::*cost) const;
  /// copy_beside_seconds, past the last point that one's: the CPU may read less for more rows.
  double CopyBesideSeconds(double rows) const;
};

/// What is done with an expert that is not in the card's memory.
enum class ExpertPlace { kCpu, kCopy };

/// A visit's split.
struct ExpertSplit {
  std::vector<ExpertPlace> places;  // as `rows` has them
  // While both are at work: how long the CPU is busy, and the card, copies included.
  double cpu_seconds = 0;
  double card_seconds = 0;
  double copy_seconds = 0;  // of one copy
  double seconds() const { return cpu_seconds > card_seconds ? cpu_seconds : card_seconds; }
};

/// Gives each expert (rows: how many it has) to whom has it done sooner, the largest first; of
/// equal ones to the CPU. card_busy_seconds: what the card computes beside that; at most max_copies
/// are copied. Depends on the arguments alone, so the same visit is split alike.
ExpertSplit SplitExperts(const ExpertCosts& costs, absl::Span<const int64_t> rows,
                         double card_busy_seconds, int64_t max_copies);

/// A visit in which CPU and card have their parts.
struct SharedVisit {
  int64_t rows = 0;
  std::vector<int64_t> cpu_rows;   // of each expert that the CPU computes
  int64_t copies = 0;              // to the card, for this visit or later ones
  double copied_card_seconds = 0;  // that the card then computes, when the last is there
  double card_busy_seconds = 0;    // and meanwhile
};

/// How long that takes.
double ForetellSeconds(const ExpertCosts& costs, const SharedVisit& visit);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_COSTS_H_
