#ifndef CARAVAN_MODEL_TENSOR_TABLE_H_
#define CARAVAN_MODEL_TENSOR_TABLE_H_

// The tensors that a model of a given config has, under their names in Hugging Face checkpoints.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"

namespace caravan {

enum class TensorClass {
  kEmbedding,
  kNorm,  // [width]; also the router's correction bias
  kAttention,
  kRouter,
  kDenseFfn,
  kSharedExpert,
  kRoutedExpert,
  kHead,
  kMtpProjection,  // eh_proj
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // [rows, cols] or [width]
  TensorClass tensor_class = TensorClass::kNorm;
};

/// Layer `layer`'s tensors. FP8 scales ("..._scale_inv") are not listed: they go with their matrix.
/// REQUIRES: 0 <= layer < config.num_hidden_layers.
std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer);
std::vector<TensorSpec> EmbeddingTensors(const ModelConfig& config);
/// The final norm, and the output projection (when they are tied: the embedding, of its class).
std::vector<TensorSpec> HeadTensors(const ModelConfig& config);
/// The first layer of multi-token prediction, model.layers.<num_hidden_layers>. Its embedding and
/// its head's projection are the model's (DeepSeek-V3, arXiv:2412.19437, section 2.2), so the
/// copies of them that checkpoints have are not listed. REQUIRES: config.num_nextn_predict_layers >
/// 0.
std::vector<TensorSpec> MtpTensors(const ModelConfig& config);
/// Each tensor once, even when the stage embeds, has the head, and the two are tied. A stage that
/// drafts needs the embedding too.
std::vector<TensorSpec> StageTensors(const ModelConfig& config, const StageSpec& stage);

/// Whether it is a kv_b_proj, which attention takes apart row by row.
bool IsKvB(const TensorSpec& spec);

/// As messages write it: "[2, 3]".
std::string ShapeText(const std::vector<int64_t>& shape);

/// The name of the scales that go with an FP8 matrix, and what they are.
std::string ScaleName(absl::string_view weight_name);
TensorInfo ScaleInfo(const TensorSpec& matrix);

/// How a stage holds `spec`'s tensor, `stored` being what its source has: norms in F32; matrices in
/// the format that they have, in tiles, but for those whose rows are used one by one.
TensorInfo LoadedInfo(const TensorSpec& spec, const TensorInfo& stored);

/// Checks that `source` has every tensor of `specs` in its shape and a dtype that the kernels take,
/// with well-formed scales where it is FP8, and returns how many bytes they take in a stage's
/// memory together: as LoadedInfo, scales included, each aligned to kMatrixAlignment. Errors:
/// InvalidArgument - names the tensor that is missing or wrong.
absl::StatusOr<int64_t> CheckTensors(const TensorSource& source,
                                     const std::vector<TensorSpec>& specs);

}  // namespace caravan

#endif  // CARAVAN_MODEL_TENSOR_TABLE_H_
