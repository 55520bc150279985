#ifndef CARAVAN_MODEL_GGUF_CHECKPOINT_H_
#define CARAVAN_MODEL_GGUF_CHECKPOINT_H_

// A model of the DeepSeek family in GGUF (architecture deepseek2), as if it were a checkpoint in
// Hugging Face's layout: its config, and its tensors under the names of model/tensor_table.h.
//
// What comes out is what the file holds, bit for bit, in GGUF's block formats: rows and the pairs
// of the rotary embedding stand in GGUF as in Hugging Face's checkpoints. Experts, which GGUF
// stacks into one tensor [n_routed_experts, rows, cols], are slices of it. One tensor has two
// layouts in GGUF:
// - older files have kv_b_proj whole, [heads * (nope + v), kv_lora_rank]: it is there under its
//   name, "...self_attn.kv_b_proj.weight";
// - newer files have it in two, the key half turned over, so that its blocks run along another
//   dimension and it cannot be put together again without decoding it. Then there is no kv_b_proj,
//   but
//     "...self_attn.k_b_proj.weight"  [heads * kv_lora_rank, qk_nope_head_dim]: head h's W_UK^T
//     "...self_attn.v_b_proj.weight"  [heads * v_head_dim, kv_lora_rank]:       head h's W_UV
//   with kv_b_proj's rows of head h being W_UK, then W_UV (docs/model.md, Attention).
// A file that has both layouts gives kv_b_proj.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/gguf_set.h"
#include "model/model_config.h"
#include "model/tensor_source.h"

namespace caravan {

/// Immutable once open, so thread-safe.
class GgufCheckpoint : public TensorSource {
 public:
  /// Reads headers, no weights. `path`: the file, or any one of a split set.
  /// Errors: as GgufSet::Open, GgufConfigJson and ParseModelConfig; InvalidArgument - a tensor that
  ///         the config asks for is missing or of another shape, a vector is quantized, or there is
  ///         a tensor that no model of the family has. Each names the file and the tensor.
  static absl::StatusOr<std::unique_ptr<GgufCheckpoint>> Open(const std::string& path);

  const ModelConfig& config() const { return config_; }
  /// config()'s text: see GgufConfigJson.
  const std::string& config_json() const { return config_json_; }
  const GgufMetadata& metadata() const { return files_->metadata(); }

  /// In ascending order.
  std::vector<std::string> TensorNames() const;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Pages of the file that were read do not stay mapped in.
  absl::Status Read(absl::string_view name, absl::Span<std::byte> out) const override;

 private:
  class Mapper;
  struct Entry {
    TensorInfo info;
    std::string gguf_name;
    int64_t offset = 0;  // bytes from the GGUF tensor's begin
  };
  GgufCheckpoint() = default;

  std::unique_ptr<GgufSet> files_;
  std::string config_json_;
  ModelConfig config_;
  absl::flat_hash_map<std::string, Entry> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_CHECKPOINT_H_
