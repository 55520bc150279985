#include "cli/choice_scores.h"

#include <algorithm>

#include "base/check.h"

namespace caravan {
namespace {

size_t Largest(const std::vector<double>& values) {
  CARAVAN_CHECK(!values.empty());
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

}  // namespace

void ChoiceScores::Add(const std::string& choice, absl::Span<const ScoredToken> prompt_scores,
                       size_t num_tokens) {
  CARAVAN_CHECK(!choice.empty() && num_tokens >= 1 && num_tokens <= prompt_scores.size());
  double sum = 0;
  for (const ScoredToken& token : prompt_scores.last(num_tokens)) sum += token.log_probability;
  log_probabilities_.push_back(sum);
  per_byte_.push_back(sum / static_cast<double>(choice.size()));
}

size_t ChoiceScores::Best() const { return Largest(log_probabilities_); }

size_t ChoiceScores::BestPerByte() const { return Largest(per_byte_); }

}  // namespace caravan
