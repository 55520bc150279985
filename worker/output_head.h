#ifndef CARAVAN_WORKER_OUTPUT_HEAD_H_
#define CARAVAN_WORKER_OUTPUT_HEAD_H_

// The end of the last stage: final norm, projection, and what the slices of a step ask of the
// logits. Decides which drafts are accepted. Of logits in a card's memory only summaries are copied
// to the host, and whole rows where that is asked for or a summary leaves the token open.
//
// Used by one thread at a time.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/backend.h"
#include "kernels/logit_summary.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/logit_row.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Borrows everything.
class OutputHead {
 public:
  /// REQUIRES: `weights` are those of a stage that has the head. Errors: as Memory::Allocate of the
  /// backend's.
  static absl::StatusOr<std::unique_ptr<OutputHead>> Create(const ModelConfig& config,
                                                            const StageWeights& weights,
                                                            Backend& backend);

  /// Adds a result for each slice. hidden [num_rows, hidden_size]: the slices' rows in order, as
  /// the last layer leaves them. REQUIRES: CheckStep(step) is OK. Errors: as Memory's copies.
  ///
  /// Drafts are accepted row by row: each row is sampled as if it stood alone, and the next one is
  /// looked at if its draft is what was sampled. So the tokens are those that steps without drafts
  /// give, whatever the temperature.
  absl::Status Run(const float* hidden, v1::Step& step);

  /// logits = lm_head RMSNorm(hidden[rows[i]], norm), handed out in order of i: take(i, logits).
  /// ask(i): what their summary is asked; called before any of them is taken, and only where
  /// summaries are made. Errors: those of `take`; as Memory's copies.
  using AskOfRow = absl::FunctionRef<LogitQuestion(size_t i)>;
  using TakeRow = absl::FunctionRef<absl::Status(size_t i, LogitRow& logits)>;
  absl::Status Project(const float* hidden, absl::Span<const int64_t> rows, const float* norm,
                       AskOfRow ask, TakeRow take);

 private:
  OutputHead(const ModelConfig& config, const StageWeights& weights, Backend& backend)
      : config_(config), weights_(weights), backend_(backend) {}

  /// What the slice asks of the logits of its row `row`.
  static absl::Status Answer(LogitRow& logits, const v1::SequenceSlice& slice, int row,
                             v1::SliceResult& result);
  /// Of rows [begin, begin + num_rows) of Project, whose logits are there. Errors: as Memory's
  /// copies.
  absl::Status Summarize(size_t begin, int64_t num_rows, AskOfRow ask);

  const ModelConfig& config_;
  const StageWeights& weights_;
  Backend& backend_;
  Array normed_;  // f32 [kHeadRows, hidden_size]
  Array logits_;  // f32 [kHeadRows, vocab_size]
  // Where the host cannot read those: of each row, and what is copied of them.
  Array questions_;  // LogitQuestion [kHeadRows]
  Array summaries_;  // LogitSummary [kHeadRows]
  std::vector<LogitSummary> host_summaries_;
  std::vector<float> host_logits_;  // of one row
};

/// Adds a row of logits to those of a result. Errors: as LogitRow::All.
absl::Status AppendLogits(LogitRow& logits, std::string& bytes);

/// The slice's history, with the tokens that were sampled so far.
v1::SamplingHistory HistoryAfter(const v1::SequenceSlice& slice, const v1::SliceResult& result);

}  // namespace caravan

#endif  // CARAVAN_WORKER_OUTPUT_HEAD_H_
