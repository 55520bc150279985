#include "model/token_distribution.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "base/check.h"

namespace caravan {

TokenDistribution::TokenDistribution(absl::Span<const float> logits)
    : log_probabilities_(logits.begin(), logits.end()) {
  CARAVAN_CHECK(!logits.empty());
  const auto largest = std::max_element(logits.begin(), logits.end());
  likeliest_ = static_cast<int32_t>(largest - logits.begin());
  double sum = 0;
  for (double& value : log_probabilities_) {
    value -= *largest;
    sum += std::exp(value);
  }
  const double log_sum = std::log(sum);
  for (double& value : log_probabilities_) value -= log_sum;
}

double TokenDistribution::DivergenceFrom(const TokenDistribution& other) const {
  CARAVAN_CHECK(log_probabilities_.size() == other.log_probabilities_.size());
  double divergence = 0;
  for (size_t i = 0; i < log_probabilities_.size(); ++i) {
    const double p = std::exp(log_probabilities_[i]);
    if (p == 0) continue;  // p ln p tends to 0
    divergence += p * (log_probabilities_[i] - other.log_probabilities_[i]);
  }
  // Below 0 only by rounding; a NaN stays.
  return divergence < 0 ? 0 : divergence;
}

}  // namespace caravan
