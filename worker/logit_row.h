#ifndef CARAVAN_WORKER_LOGIT_ROW_H_
#define CARAVAN_WORKER_LOGIT_ROW_H_

// A row of logits where the backend made it, and what the host takes of it: of a card's the
// summary, and the row itself only where that leaves something open. Tokens are the same.
//
// Used by one thread at a time.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/logit_summary.h"
#include "kernels/memory.h"
#include "model/scored_token.h"

namespace caravan {

/// Borrows everything.
class LogitRow {
 public:
  /// logits [vocab_size] in `memory`; `summary` is null where the host can read them there. `copy`
  /// is where they are copied to else.
  LogitRow(Memory& memory, const float* logits, int64_t vocab_size, const LogitSummary* summary,
           std::vector<float>& copy)
      : memory_(memory), logits_(logits), vocab_size_(vocab_size), summary_(summary), copy_(copy) {}

  /// For the host to read; good as long as `copy`. Errors: as Memory::CopyOut.
  absl::StatusOr<absl::Span<const float>> All();

  /// DrawToken and SampleToken (model/sampler.h). REQUIRES: the summary's question is QuestionFor
  /// of these. Errors: as All.
  absl::StatusOr<int32_t> Draw(const v1::SamplingParams& params, const v1::SamplingHistory& history,
                               int64_t position);
  absl::StatusOr<ScoredToken> Sample(const v1::SamplingParams& params,
                                     const v1::SamplingHistory& history, int64_t position);

  /// ScoreToken. REQUIRES: the summary's question is of `token_id`. Errors: as All.
  absl::StatusOr<ScoredToken> Score(int32_t token_id, int num_alternatives);

 private:
  Memory& memory_;
  const float* const logits_;
  const int64_t vocab_size_;
  const LogitSummary* const summary_;
  std::vector<float>& copy_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_LOGIT_ROW_H_
