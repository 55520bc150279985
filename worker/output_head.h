#ifndef CARAVAN_WORKER_OUTPUT_HEAD_H_
#define CARAVAN_WORKER_OUTPUT_HEAD_H_

// The end of the last stage: final norm, projection, and what the slices of a step ask of the
// logits.
//
// Used by one thread at a time.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Borrows everything.
class OutputHead {
 public:
  /// REQUIRES: `weights` are those of a stage that has the head.
  OutputHead(const ModelConfig& config, const StageWeights& weights, Backend& backend);

  /// Adds a result for each slice. hidden [num_rows, hidden_size]: the slices' rows in order, as
  /// the last layer leaves them. REQUIRES: CheckStep(step) is OK.
  void Run(const float* hidden, v1::Step& step);

 private:
  /// A row whose logits somebody wants.
  struct WantedRow {
    int slice = 0;
    int row_of_slice = 0;
    int64_t row = 0;  // of the step
  };
  static std::vector<WantedRow> RowsWantedOf(const v1::Step& step);
  /// Fills logits_ for at most kHeadRows rows.
  void Project(const float* hidden, absl::Span<const WantedRow> rows);
  static void Answer(absl::Span<const float> logits, const v1::SequenceSlice& slice,
                     int row_of_slice, v1::SliceResult& result);

  const ModelConfig& config_;
  const StageWeights& weights_;
  Backend& backend_;
  std::vector<float> normed_;  // [kHeadRows, hidden_size]
  std::vector<float> logits_;  // [kHeadRows, vocab_size]
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_OUTPUT_HEAD_H_
