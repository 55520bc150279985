#ifndef CARAVAN_WORKER_MTP_DRAFTER_H_
#define CARAVAN_WORKER_MTP_DRAFTER_H_

// The model's own layer of multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2) at
// the end of the last stage: from what the model made of a token, and the token after it, it drafts
// the one after that. Drafts are guesses; OutputHead decides.
//
// Used by one thread at a time.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "caravan/v1/pipeline.pb.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "worker/kv_cache.h"
#include "worker/layer.h"
#include "worker/logit_row.h"
#include "worker/output_head.h"
#include "worker/sequence_table.h"
#include "worker/stage_weights.h"

namespace caravan {

/// Borrows everything.
class MtpDrafter {
 public:
  /// REQUIRES: `weights` are those of a stage with head and MTP layer; `layer_runner` takes
  /// `max_rows`. Errors: as Memory::Allocate of the backend's.
  static absl::StatusOr<std::unique_ptr<MtpDrafter>> Create(const ModelConfig& config,
                                                            const StageWeights& weights,
                                                            Backend& backend,
                                                            LayerRunner& layer_runner,
                                                            OutputHead& head, int64_t max_rows);

  /// Runs the layer over the slices that ask for drafts, as far as the token after a row is known,
  /// with its keys and values in layer `kv_layer` of their blocks. Adds draft_token_ids to the
  /// results of those that sample, mtp_logits to those that want logits.
  /// hidden [num_rows, hidden_size]: as for OutputHead::Run, which has filled step.results.
  /// Errors: as LayerRunner::Run, KvCache::LoadLayer and StoreLayer, OutputHead::Project.
  absl::Status Run(const float* hidden, KvCache& kv_cache, int kv_layer, v1::Step& step);

 private:
  MtpDrafter(const ModelConfig& config, const StageWeights& weights, Backend& backend,
             LayerRunner& layer_runner, OutputHead& head)
      : config_(config),
        weights_(weights),
        backend_(backend),
        layer_runner_(layer_runner),
        head_(head) {}

  /// Fills hidden_ [next_ids.size(), hidden_size]: eh_proj [enorm(embedding of next_ids) |
  /// hnorm(final norm of hidden's rows)].
  absl::Status TakeInput(const float* hidden, absl::Span<const int64_t> rows,
                         absl::Span<const int32_t> next_ids);
  static absl::Status Answer(LogitRow& logits, const v1::SequenceSlice& slice,
                             v1::SliceResult& result);

  const ModelConfig& config_;
  const StageWeights& weights_;
  Backend& backend_;
  LayerRunner& layer_runner_;
  OutputHead& head_;
  Array ids_;       // i32 [max_rows], where the backend cannot read the host's
  Array embedded_;  // f32 [max_rows, hidden_size]
  Array joined_;    // f32 [max_rows, 2 * hidden_size]
  Array hidden_;    // f32 [max_rows, hidden_size]
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_MTP_DRAFTER_H_
