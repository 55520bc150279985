#ifndef CARAVAN_MODEL_SAMPLER_H_
#define CARAVAN_MODEL_SAMPLER_H_

// Draws the next token from its logits.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "model/scored_token.h"

namespace caravan {

/// Errors: InvalidArgument - names the field: temperature negative, not finite or past 100; top_p
///         outside [0, 1] or not a number.
absl::Status CheckSamplingParams(const v1::SamplingParams& params);

/// `position` is that of the token to be drawn: with `params.seed` it fixes the draw, whatever the
/// batch. Equal logits go to the lower id. Order of the filters: temperature, top_k, top_p.
/// Any logits give a token within range: NaN counts as -inf, and where the largest is infinite, all
/// that equal it share the probability evenly.
/// REQUIRES: logits is not empty; CheckSamplingParams(params) is OK.
ScoredToken SampleToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                        int64_t position);

}  // namespace caravan

#endif  // CARAVAN_MODEL_SAMPLER_H_
