#ifndef CARAVAN_WORKER_OUTPUT_HEAD_H_
#define CARAVAN_WORKER_OUTPUT_HEAD_H_

// The end of the last stage: final norm, projection, and what the slices of a step ask of the
// logits. Decides which drafts are accepted.
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
#include "kernels/memory.h"
#include "model/model_config.h"
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
  /// the last layer leaves them. REQUIRES: CheckStep(step) is OK. Errors: as Memory::CopyOut.
  ///
  /// Drafts are accepted row by row: each row is sampled as if it stood alone, and the next one is
  /// looked at if its draft is what was sampled. So the tokens are those that steps without drafts
  /// give, whatever the temperature.
  absl::Status Run(const float* hidden, v1::Step& step);

  /// logits = lm_head RMSNorm(hidden[rows[i]], norm), handed out in order of i. Errors: as
  /// Memory::CopyOut.
  using TakeLogits = absl::FunctionRef<void(size_t i, absl::Span<const float> logits)>;
  absl::Status Project(const float* hidden, absl::Span<const int64_t> rows, const float* norm,
                       TakeLogits take);

 private:
  OutputHead(const ModelConfig& config, const StageWeights& weights, Backend& backend)
      : config_(config), weights_(weights), backend_(backend) {}

  /// What the slice asks of the logits of its row `row`.
  static void Answer(absl::Span<const float> logits, const v1::SequenceSlice& slice, int row,
                     v1::SliceResult& result);

  const ModelConfig& config_;
  const StageWeights& weights_;
  Backend& backend_;
  Array normed_;                    // f32 [kHeadRows, hidden_size]
  Array logits_;                    // f32 [kHeadRows, vocab_size]
  std::vector<float> host_logits_;  // the same, where the host cannot read them there
};

/// Adds a row of logits to those of a result.
void AppendLogits(absl::Span<const float> logits, std::string& bytes);

/// The slice's history, with the tokens that were sampled so far.
v1::SamplingHistory HistoryAfter(const v1::SequenceSlice& slice, const v1::SliceResult& result);

}  // namespace caravan

#endif  // CARAVAN_WORKER_OUTPUT_HEAD_H_
