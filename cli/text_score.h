#ifndef CARAVAN_CLI_TEXT_SCORE_H_
#define CARAVAN_CLI_TEXT_SCORE_H_

// How well a model foretells a text, and how far it is from another one that reads the same.

#include <cstdint>

#include "absl/status/statusor.h"
#include "coordinator/pipeline_driver.h"
#include "model/text_windows.h"
#include "model/token_distribution.h"

namespace caravan {

/// Of the tokens that were scored, one by one.
class LikelihoodSum {
 public:
  /// `log_probability`: natural, of a token that came.
  void Add(double log_probability);

  int64_t tokens() const { return tokens_; }
  /// Mean negative log-likelihood, in nats a token. REQUIRES: tokens() > 0.
  double mean_nll() const { return nll_ / static_cast<double>(tokens_); }
  /// exp(mean_nll()).
  double perplexity() const;

 private:
  int64_t tokens_ = 0;
  double nll_ = 0;
};

/// Of the places whose next tokens were compared.
class DivergenceSum {
 public:
  /// What a model expects in the place of what `reference` does.
  void Add(const TokenDistribution& reference, const TokenDistribution& model);

  /// KL(reference || model), in nats a token. REQUIRES: something was added.
  double mean() const { return sum_ / static_cast<double>(tokens_); }
  double largest() const { return largest_; }
  /// Share of the places where both have the same likeliest token, in [0, 1].
  double top1_agreement() const {
    return static_cast<double>(agreed_) / static_cast<double>(tokens_);
  }

 private:
  int64_t tokens_ = 0;
  int64_t agreed_ = 0;
  double sum_ = 0;
  double largest_ = 0;
};

struct TextScore {
  LikelihoodSum model;
  LikelihoodSum reference;   // empty without one
  DivergenceSum divergence;  // likewise
};

/// The text's likelihood by `model`; and by `reference`, a model of the same vocabulary, and how
/// far apart the two are before each scored token, unless it is null. A window's first token is not
/// scored. Holds one window's logits of both at a time, f32 [window_tokens, vocab_size].
/// Errors: InvalidArgument - no token can be scored; DataLoss - logits are not finite; as
///         PipelineDriver::Submit and JobHandle::Next.
absl::StatusOr<TextScore> ScoreText(TextWindows windows, PipelineDriver& model,
                                    PipelineDriver* reference);

}  // namespace caravan

#endif  // CARAVAN_CLI_TEXT_SCORE_H_
