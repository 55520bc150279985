#include "kernels/logit_summary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/check.h"

namespace caravan {
namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();

}  // namespace

LogitSummary SummarizeLogitRow(absl::Span<const float> logits, const LogitQuestion& question) {
  CARAVAN_CHECK(!logits.empty() && question.temperature > 0);
  std::vector<float> values(logits.begin(), logits.end());
  for (float& value : values) {
    if (std::isnan(value)) value = kLeast;
    if (value == 0) value = 0;
  }
  const auto value_of = [&](int32_t id) { return values[static_cast<size_t>(id)]; };
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t count = std::min<size_t>(values.size(), kSummaryCandidates);
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(),
                    [&](int32_t a, int32_t b) {
                      return value_of(a) > value_of(b) || (value_of(a) == value_of(b) && a < b);
                    });

  LogitSummary summary = {};
  summary.vocab_size = static_cast<int32_t>(values.size());
  for (size_t i = 0; i < kSummaryCandidates; ++i) {
    summary.ids[i] = i < count ? ids[i] : -1;
    summary.logits[i] = i < count ? value_of(ids[i]) : kLeast;
  }
  summary.token_logit = question.token_id >= 0 ? value_of(question.token_id) : kLeast;

  const double largest = value_of(ids[0]);
  const auto weight_of = [&](float value, double temperature) {
    return value == largest ? 1 : std::exp((value - largest) / temperature);
  };
  for (const float value : values) {
    summary.sum += weight_of(value, 1);
    summary.weight += weight_of(value, question.temperature);
  }
  summary.drawn_id = -1;
  summary.drawn_logit = kLeast;
  if (question.quantile < 0) return summary;
  const double target = question.quantile * summary.weight;
  double reached = 0;
  for (size_t id = 0; id < values.size(); ++id) {
    const double before = reached;
    reached += weight_of(values[id], question.temperature);
    if (reached <= target) continue;
    summary.drawn_id = static_cast<int32_t>(id);
    summary.drawn_logit = values[id];
    summary.before_drawn = before;
    summary.through_drawn = reached;
    break;
  }
  return summary;
}

}  // namespace caravan
