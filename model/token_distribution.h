#ifndef CARAVAN_MODEL_TOKEN_DISTRIBUTION_H_
#define CARAVAN_MODEL_TOKEN_DISTRIBUTION_H_

// The distribution of the next token that a model's logits stand for, whole and in double: what
// models are compared by. (The sampler knows one token's share of it.)

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace caravan {

/// The softmax of one row of logits. Logarithms are natural. Logits that are not finite make
/// log-probabilities that are not finite. Immutable, thread-safe.
class TokenDistribution {
 public:
  /// REQUIRES: logits, f32 [vocab_size], is not empty.
  explicit TokenDistribution(absl::Span<const float> logits);

  /// REQUIRES: 0 <= token_id < vocab_size.
  double LogProbability(int32_t token_id) const {
    return log_probabilities_[static_cast<size_t>(token_id)];
  }

  /// Of equals the one with the lowest id.
  int32_t likeliest() const { return likeliest_; }

  /// The Kullback-Leibler divergence KL(this || other), sum of p ln(p / q), in nats: what is lost,
  /// a token, by who takes q for p. At least 0, and exactly 0 for equal logits.
  /// REQUIRES: both are over the same vocabulary.
  double DivergenceFrom(const TokenDistribution& other) const;

 private:
  std::vector<double> log_probabilities_;  // [vocab_size]
  int32_t likeliest_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TOKEN_DISTRIBUTION_H_
