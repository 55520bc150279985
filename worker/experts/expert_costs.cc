#include "worker/experts/expert_costs.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "base/check.h"

namespace caravan {
namespace {

using Point = ExpertCosts::Point;

/// Where a number of rows lies among the points: `way` of the way, which may be past its end.
struct Stretch {
  const Point* from = nullptr;
  const Point* to = nullptr;
  double way = 0;
};

Stretch StretchOf(const ExpertCosts& costs, double rows) {
  const std::vector<Point>& points = costs.points;
  CARAVAN_CHECK(!points.empty() && rows >= 1);
  if (points.size() == 1 || rows <= static_cast<double>(points.front().rows)) {
    return {&points.front(), &points.front(), 0};
  }
  size_t above = 1;
  while (above + 1 < points.size() && static_cast<double>(points[above].rows) < rows) ++above;
  const Point& from = points[above - 1];
  const Point& to = points[above];
  return {&from, &to,
          (rows - static_cast<double>(from.rows)) / static_cast<double>(to.rows - from.rows)};
}

double MeanOf(absl::Span<const int64_t> rows) {
  const auto sum = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
  return rows.empty() ? 1 : sum / static_cast<double>(rows.size());
}

}  // namespace

double ExpertCosts::At(double rows, double Point::*cost) const {
  const Stretch stretch = StretchOf(*this, rows);
  // Whatever noise says.
  const double rise = std::max(0.0, stretch.to->*cost - stretch.from->*cost);
  return stretch.from->*cost + stretch.way * rise;
}

double ExpertCosts::CopyBesideSeconds(double rows) const {
  const Stretch stretch = StretchOf(*this, rows);
  const double rise = stretch.to->copy_beside_seconds - stretch.from->copy_beside_seconds;
  return stretch.from->copy_beside_seconds + std::min(stretch.way, 1.0) * rise;
}

ExpertSplit SplitExperts(const ExpertCosts& costs, absl::Span<const int64_t> rows,
                         double card_busy_seconds, int64_t max_copies) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [rows](size_t a, size_t b) { return rows[a] > rows[b]; });
  ExpertSplit split;
  split.places.resize(rows.size(), ExpertPlace::kCpu);
  split.card_seconds = card_busy_seconds;
  split.copy_seconds = costs.CopyBesideSeconds(MeanOf(rows));
  double copied = 0;  // when the last copy ends
  for (const size_t i : order) {
    const auto count = static_cast<double>(rows[i]);
    const double on_cpu = split.cpu_seconds + costs.At(count, &Point::cpu_beside_seconds);
    const double on_card = std::max(copied + split.copy_seconds, split.card_seconds) +
                           costs.At(count, &Point::card_seconds);
    if (max_copies == 0 || on_cpu <= on_card) {
      split.cpu_seconds = on_cpu;
      continue;
    }
    --max_copies;
    split.places[i] = ExpertPlace::kCopy;
    copied += split.copy_seconds;
    split.card_seconds = on_card;
  }
  return split;
}

double ForetellSeconds(const ExpertCosts& costs, const SharedVisit& visit) {
  double cpu_alone = 0;
  double cpu_beside = 0;
  for (const int64_t rows : visit.cpu_rows) {
    cpu_alone += costs.At(static_cast<double>(rows), &Point::cpu_seconds);
    cpu_beside += costs.At(static_cast<double>(rows), &Point::cpu_beside_seconds);
  }
  const auto copies = static_cast<double>(visit.copies);
  const double copy_alone = copies * costs.copy_seconds;
  const double copy_beside = copies * costs.CopyBesideSeconds(MeanOf(visit.cpu_rows));
  // Who is done first leaves the host's memory to the other, for what is left of its work.
  double cpu = cpu_beside;
  double copied = copy_beside;
  if (cpu_beside > copy_beside) {
    cpu = copy_beside + (1 - copy_beside / cpu_beside) * cpu_alone;
  } else if (copy_beside > cpu_beside) {
    copied = cpu_beside + (1 - cpu_beside / copy_beside) * copy_alone;
  }
  return costs.visit_seconds + static_cast<double>(visit.rows) * costs.visit_row_seconds +
         std::max({cpu, copied + visit.copied_card_seconds, visit.card_busy_seconds});
}

}  // namespace caravan
