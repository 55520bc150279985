#include "cli/text_score.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/status_macros.h"
#include "cli/local_pipeline.h"

namespace caravan {
namespace {

absl::Status CheckFinite(double log_probability, const char* whose) {
  // Finite logits give finite ones, however unlikely the token.
  if (std::isfinite(log_probability)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the logits of ", whose, " are not finite"));
}

/// What is expected after each of `ids`, one after the other.
class WindowLogits {
 public:
  static absl::StatusOr<WindowLogits> Read(PipelineDriver& driver,
                                           const std::vector<int32_t>& ids) {
    WindowLogits window;
    CARAVAN_ASSIGN_OR_RETURN(window.logits_, ScorePrompt(driver, ids));
    window.vocab_size_ = window.logits_.size() / ids.size();
    return window;
  }

  TokenDistribution After(size_t i) const {
    return TokenDistribution(absl::MakeConstSpan(logits_).subspan(i * vocab_size_, vocab_size_));
  }

 private:
  std::vector<float> logits_;  // [ids.size(), vocab_size_]
  size_t vocab_size_ = 0;
};

absl::Status ScoreWindow(const std::vector<int32_t>& ids, PipelineDriver& model,
                         PipelineDriver* reference, TextScore& score) {
  CARAVAN_ASSIGN_OR_RETURN(const WindowLogits logits, WindowLogits::Read(model, ids));
  std::optional<WindowLogits> reference_logits;
  if (reference != nullptr) {
    CARAVAN_ASSIGN_OR_RETURN(reference_logits, WindowLogits::Read(*reference, ids));
  }
  // The last place foretells a token past the window.
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const TokenDistribution q = logits.After(i);
    CARAVAN_RETURN_IF_ERROR(CheckFinite(q.LogProbability(ids[i + 1]), "the model"));
    score.model.Add(q.LogProbability(ids[i + 1]));
    if (!reference_logits.has_value()) continue;
    const TokenDistribution p = reference_logits->After(i);
    CARAVAN_RETURN_IF_ERROR(CheckFinite(p.LogProbability(ids[i + 1]), "the model to compare with"));
    score.reference.Add(p.LogProbability(ids[i + 1]));
    score.divergence.Add(p, q);
  }
  return absl::OkStatus();
}

}  // namespace

void LikelihoodSum::Add(double log_probability) {
  ++tokens_;
  nll_ -= log_probability;
}

double LikelihoodSum::perplexity() const { return std::exp(mean_nll()); }

void DivergenceSum::Add(const TokenDistribution& reference, const TokenDistribution& model) {
  ++tokens_;
  if (reference.likeliest() == model.likeliest()) ++agreed_;
  const double divergence = reference.DivergenceFrom(model);
  sum_ += divergence;
  largest_ = std::max(largest_, divergence);
}

absl::StatusOr<TextScore> ScoreText(TextWindows windows, PipelineDriver& model,
                                    PipelineDriver* reference) {
  TextScore score;
  for (std::vector<int32_t> ids = windows.Next(); !ids.empty(); ids = windows.Next()) {
    if (ids.size() >= 2) {
      CARAVAN_RETURN_IF_ERROR(ScoreWindow(ids, model, reference, score));
    }
  }
  if (score.model.tokens() == 0) {
    return absl::InvalidArgumentError("holds no token that another one comes before");
  }
  return score;
}

}  // namespace caravan
