#ifndef CARAVAN_CLI_CHOICE_SCORES_H_
#define CARAVAN_CLI_CHOICE_SCORES_H_

// Which of a question's choices a model finds likeliest.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "model/scored_token.h"

namespace caravan {

/// The choices of one question, scored one after the other. Not thread-safe.
class ChoiceScores {
 public:
  /// The next choice. Its tokens are the last `num_tokens` of `prompt_scores`, which are a job's
  /// with score_prompt. Its log-probability is the sum of theirs.
  /// REQUIRES: choice is not empty; 1 <= num_tokens <= prompt_scores.size().
  void Add(const std::string& choice, absl::Span<const ScoredToken> prompt_scores,
           size_t num_tokens);

  /// Log-probabilities (nats), in the order of Add.
  const std::vector<double>& log_probabilities() const { return log_probabilities_; }

  /// The index of the likeliest: of equals the first. REQUIRES: there is one.
  size_t Best() const;
  /// The same by log-probability divided by the choice's bytes of UTF-8, so that long choices stand
  /// a chance.
  size_t BestPerByte() const;

 private:
  std::vector<double> log_probabilities_;
  std::vector<double> per_byte_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_CHOICE_SCORES_H_
