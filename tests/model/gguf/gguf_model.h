#ifndef CARAVAN_TESTS_MODEL_GGUF_GGUF_MODEL_H_
#define CARAVAN_TESTS_MODEL_GGUF_GGUF_MODEL_H_

// Models as GGUF, for tests: what a converter does to a checkpoint in Hugging Face's layout.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/dtype.h"
#include "model/model_config.h"
#include "model/tensor_source.h"
#include "nlohmann/json.hpp"
#include "tests/support/gguf_writer.h"

namespace caravan {

struct RawTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;
  bool operator==(const RawTensor&) const = default;
};
/// By name.
using RawTensors = std::map<std::string, RawTensor>;

/// The tensors of a whole model (of the first layer of multi-token prediction too, where
/// `with_mtp`) under their names in Hugging Face's checkpoints: matrices in BF16 (rounded to
/// nearest even, where they are FP8 in `source`), vectors in F32.
RawTensors DequantizedTensors(const TensorSource& source, const ModelConfig& config, bool with_mtp);

/// The same of random bytes, matrices in the type that `dtype_of` gives their name.
RawTensors RandomTensors(const ModelConfig& config,
                         const std::function<DType(const std::string&)>& dtype_of, uint64_t seed);

/// Puts k_b_proj and v_b_proj in the place of each kv_b_proj, as newer converters do.
/// REQUIRES: those are BF16.
RawTensors SplitKvB(const RawTensors& tensors, const ModelConfig& config);

/// Which converter.
enum class GgufAge {
  kOld,  // before the latent space's keys, expert groups and YaRN's betas were written
  kNew,
};

/// The metadata of a model with this config.json; `with_mtp`: its layers of multi-token prediction
/// are in the file.
void AddGgufConfig(const nlohmann::json& config, GgufAge age, bool with_mtp, GgufWriter& writer);

/// The metadata of this tokenizer.json, padded to `vocab_size` tokens.
void AddGgufTokenizer(const nlohmann::json& tokenizer, int64_t vocab_size, absl::string_view pre,
                      GgufWriter& writer);

/// The tensors under GGUF's names: experts stacked, and the heads of k_b_proj and v_b_proj.
RawTensors GgufTensors(const RawTensors& tensors, int64_t num_heads);

void AddGgufTensor(const std::string& name, const RawTensor& tensor, GgufWriter& writer);

/// The format's number of a type.
uint32_t GgufTypeCode(DType dtype);

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_GGUF_GGUF_MODEL_H_
