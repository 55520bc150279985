#ifndef CARAVAN_MODEL_SAMPLER_H_
#define CARAVAN_MODEL_SAMPLER_H_

// Draws the next token from its logits, and says how likely a token was. docs/model.md has the
// mathematics.
//
// What is said of any logits: NaN counts as -inf, and where the largest is infinite, all that equal
// it share the probability evenly. Equal logits rank by id, the lower first.
//
// Logits that lie in a card's memory need not be copied to be drawn from: most draws follow from a
// summary of them (kernels/logit_summary.h), and then give the same token.

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/logit_summary.h"
#include "model/scored_token.h"

namespace caravan {

// OpenAI's limit of top_logprobs.
inline constexpr int kMaxAlternatives = 20;
// Every step of a sequence carries them all.
inline constexpr int kMaxLogitBiases = 1024;

/// Limits: temperature [0, 100]; top_p, min_p [0, 1]; frequency_penalty, presence_penalty [-2, 2];
/// repetition_penalty [0, 100]; at most kMaxLogitBiases logit_biases, each in [-100, 100], each
/// token once and within the vocabulary (where `vocab_size` is given); num_alternatives up to
/// kMaxAlternatives. Nothing may be NaN.
/// Errors: InvalidArgument - begins with the field's name.
absl::Status CheckSamplingParams(const v1::SamplingParams& params,
                                 std::optional<int64_t> vocab_size = std::nullopt);

/// The next token. `position` is its own: with `params.seed` it fixes the draw, whatever the batch.
/// `history` is read when `params` has penalties.
/// REQUIRES: logits is not empty; CheckSamplingParams(params, logits.size()) is OK; the history's
/// tokens are within the vocabulary.
int32_t DrawToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                  const v1::SamplingHistory& history, int64_t position);

/// How likely `token_id` is by the logits as given, and the `num_alternatives` likeliest (fewer in
/// a smaller vocabulary), whether it is among them or not. REQUIRES: 0 <= token_id < logits.size();
/// num_alternatives >= 0.
ScoredToken ScoreToken(absl::Span<const float> logits, int32_t token_id, int num_alternatives);

/// DrawToken's token with its score.
ScoredToken SampleToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                        const v1::SamplingHistory& history, int64_t position);

/// What a summary is to be asked, for a draw from it.
LogitQuestion QuestionFor(const v1::SamplingParams& params, int64_t position);

/// The token that DrawToken gives for the logits that `summary` is of; nothing where the summary
/// leaves it open: a nucleus of more tokens than it has, a draw so close to where two tokens meet
/// that rounding decides, biases or penalties that may lift a token that it has not, or that make
/// too much of a difference to what these weigh together.
/// REQUIRES: as DrawToken; the summary is of QuestionFor(params, position).
std::optional<int32_t> DrawToken(const LogitSummary& summary, const v1::SamplingParams& params,
                                 const v1::SamplingHistory& history, int64_t position);

/// As of all logits. Log-probabilities are the same to WeightSumError, which a float rarely shows.
/// REQUIRES: `token_id` is that of the summary's question, or what DrawToken gives for it;
/// 0 <= num_alternatives <= kMaxAlternatives.
ScoredToken ScoreToken(const LogitSummary& summary, int32_t token_id, int num_alternatives);

/// DrawToken's token, if any, with its score.
std::optional<ScoredToken> SampleToken(const LogitSummary& summary,
                                       const v1::SamplingParams& params,
                                       const v1::SamplingHistory& history, int64_t position);

}  // namespace caravan

#endif  // CARAVAN_MODEL_SAMPLER_H_
