#ifndef CARAVAN_KERNELS_LOGIT_SUMMARY_H_
#define CARAVAN_KERNELS_LOGIT_SUMMARY_H_

// What is asked of a row of logits, and what is told of it, so that a token can be drawn and scored
// without the row: where it lies in a card's memory, copying all of it takes longer than this.
// Backend::SummarizeLogits makes summaries; model/sampler knows what to ask, and what follows.
//
// Of any logits: NaN counts as -inf and -0 as 0; equal ones rank by id, the lower first. A logit's
// weight at a temperature is exp((logit - largest) / temperature); where the largest is infinite,
// all that equal it weigh 1.

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"

namespace caravan {

/// How many of the largest logits a summary has. The nucleus of a usual draw is smaller.
inline constexpr int kSummaryCandidates = 128;

struct LogitQuestion {
  float temperature = 1;  // > 0, of `weight`
  int32_t token_id = -1;  // whose logit is told, within the vocabulary; -1: nobody's
  double quantile = -1;   // [0, 1): which token is told as drawn; -1: none
};

struct LogitSummary {
  // The largest, in order of rank. Behind num_candidates(): -inf and -1.
  float logits[kSummaryCandidates];
  int32_t ids[kSummaryCandidates];
  int32_t vocab_size;  // of the row
  float token_logit;   // -inf if nobody's was asked for
  double sum;          // of the weights at temperature 1
  double weight;       // of the weights at the question's temperature
  // The first token, by ascending ids, at which the running sum of weights passes quantile *
  // weight, and that sum before it and with it. -1: nobody asked, or it went lost in rounding.
  int32_t drawn_id;
  float drawn_logit;
  double before_drawn;
  double through_drawn;

  int num_candidates() const { return std::min<int>(vocab_size, kSummaryCandidates); }
};

/// By how much of the whole a sum of `vocab` weights may be off, in a summary and, summed in double
/// in any order, elsewhere: a rounding of at most 2^-53 of the whole a term, and with the term's
/// own (exp and its argument's; x exp(-x) <= 0.37) less than two.
inline double WeightSumError(int64_t vocab) { return static_cast<double>(vocab + 300) * 0x1p-52; }

/// Backend::SummarizeLogits of one row, plainly. REQUIRES: logits is not empty.
LogitSummary SummarizeLogitRow(absl::Span<const float> logits, const LogitQuestion& question);

}  // namespace caravan

#endif  // CARAVAN_KERNELS_LOGIT_SUMMARY_H_
