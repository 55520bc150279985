#ifndef CARAVAN_MODEL_GGUF_GGUF_CONFIG_H_
#define CARAVAN_MODEL_GGUF_GGUF_CONFIG_H_

// What a GGUF file of architecture deepseek2 says of its model, as the config.json that
// ParseModelConfig reads and checks.

#include <string>

#include "absl/status/statusor.h"
#include "model/gguf/gguf_metadata.h"
#include "model/tensor_source.h"

namespace caravan {

/// A config.json's text. `tensors` are the file's, under GGUF's names: they say what the metadata
/// do not (a projection tied to the embedding; a correction bias; which layers predict further
/// tokens).
///
/// Where the two formats differ:
/// - YaRN: rope.scaling.yarn_log_multiplier is 0.1 * mscale_all_dim. GGUF has no mscale; it is
///   taken to equal mscale_all_dim, as in every published config of the family (the factor on
///   cosine and sine is then 1). beta_fast and beta_slow are 32 and 1 where the file does not say
///   (older ones), but Kimi-K2's, by tokenizer.ggml.pre, are 1 and 1.
/// - model_type is not in GGUF: kimi_k2 by tokenizer.ggml.pre, else deepseek_v3 where there is a
///   correction bias, else deepseek_v2. topk_method is noaux_tc with that bias, else
///   group_limited_greedy with several groups, else greedy.
/// - Expert groups: older files lack their counts. Then they are 8, of which 4, for exactly
///   DeepSeek-V3's layers, width and experts; 8, of which 3, for DeepSeek-V2's; else one.
/// - attention.key_length and value_length are a head's, unless there are attention.key_length_mla
///   and value_length_mla: those are the head's then, and the others the latent's.
/// - block_count counts the layers of multi-token prediction where nextn_predict_layers is there.
///   Most files leave them out, and then num_nextn_predict_layers is 0 whatever the published
///   config says.
/// - Numbers are float32, and read as GgufMetadata::Number says.
///
/// Errors: InvalidArgument - another architecture; a key that is missing, of the wrong type or out
///         of range; one that changes the arithmetic in a way that Caravan does not run. Each names
///         the file and the key. (What ParseModelConfig refuses of the text it names as config.json
///         does.)
absl::StatusOr<std::string> GgufConfigJson(const GgufMetadata& metadata,
                                           const TensorSource& tensors);

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_CONFIG_H_
