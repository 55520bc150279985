#include "worker/experts/expert_costs.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "base/check.h"

namespace caravan {
namespace {

double Interpolated(const std::vector<ExpertCosts::Point>& points, int64_t rows,
                    double ExpertCosts::Point::*cost) {
  CARAVAN_CHECK(!points.empty() && rows >= 1);
  if (points.size() == 1 || rows <= points.front().rows) return points.front().*cost;
  size_t above = 1;
  while (above + 1 < points.size() && points[above].rows < rows) ++above;
  const ExpertCosts::Point& a = points[above - 1];
  const ExpertCosts::Point& b = points[above];
  // More rows never take less, whatever noise says.
  const double slope = std::max(0.0, b.*cost - a.*cost) / static_cast<double>(b.rows - a.rows);
  return a.*cost + slope * static_cast<double>(rows - a.rows);
}

}  // namespace

double ExpertCosts::CpuSeconds(int64_t rows) const {
  return Interpolated(points, rows, &Point::cpu_seconds);
}

double ExpertCosts::CardSeconds(int64_t rows) const {
  return Interpolated(points, rows, &Point::card_seconds);
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
  double copied = 0;  // when the last copy ends
  for (const size_t i : order) {
    const double on_cpu = split.cpu_seconds + costs.CpuSeconds(rows[i]);
    const double on_card =
        std::max(copied + costs.copy_seconds, split.card_seconds) + costs.CardSeconds(rows[i]);
    if (max_copies == 0 || on_cpu <= on_card) {
      split.cpu_seconds = on_cpu;
      continue;
    }
    --max_copies;
    split.places[i] = ExpertPlace::kCopy;
    copied += costs.copy_seconds;
    split.card_seconds = on_card;
  }
  return split;
}

}  // namespace caravan
