#ifndef CARAVAN_WORKER_STEP_CHECK_H_
#define CARAVAN_WORKER_STEP_CHECK_H_

// Whether a step can be run: all that a stage asks of it before it touches anything. Knows nothing
// of earlier steps; that the blocks hold what the coordinator says is the coordinator's promise.

#include <cstdint>

#include "absl/status/status.h"
#include "caravan/v1/pipeline.pb.h"

namespace caravan {

struct StepLimits {
  int64_t max_rows = 0;  // of all slices together
  int64_t vocab_size = 0;
  int64_t max_positions = 0;  // of the model: max_position_embeddings
  int64_t kv_blocks = 0;      // of the stage's KV cache
  int64_t block_tokens = 0;
};

/// Rows of all slices together.
int64_t CountRows(const v1::Step& step);

/// Errors: InvalidArgument - names the sequence, or the block copy, and what is wrong: more rows
///         than max_rows; a sequence with two slices, without tokens, or with an unknown output; a
///         token outside the vocabulary; drafts where nothing is sampled, or without the token
///         before them; a position past the model's; a block that is not there; a table that ends
///         before the last row; a block that is written twice; sampling parameters that
///         CheckSamplingParams refuses.
absl::Status CheckStep(const v1::Step& step, const StepLimits& limits);

}  // namespace caravan

#endif  // CARAVAN_WORKER_STEP_CHECK_H_
