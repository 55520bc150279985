#ifndef CARAVAN_MODEL_GGUF_GGUF_CHECKPOINT_H_
#define CARAVAN_MODEL_GGUF_GGUF_CHECKPOINT_H_

// A model of the DeepSeek family in GGUF (architecture deepseek2), as if it were a checkpoint in
// Hugging Face's layout: its config, and its tensors under the names of model/tensor_table.h.
//
// What comes out is what the file holds, bit for bit, in GGUF's block formats (but for those of
// gguf_foreign_blocks.h): rows and the pairs of the rotary embedding stand in GGUF as in Hugging
// Face's checkpoints. Experts, which GGUF stacks into one tensor [n_routed_experts, rows, cols],
// are slices of it. One tensor has two layouts in GGUF:
// - older files have kv_b_proj whole, [heads * (nope + v), kv_lora_rank];
// - newer files have it in two, the key half turned over: attn_k_b [heads, kv_lora_rank, nope],
//   head h's W_UK^T, and attn_v_b [heads, v, kv_lora_rank], its W_UV (docs/model.md, Attention).
//   Blocks of the key half run along another dimension, so that it cannot be turned back without
//   decoding it: kv_b_proj then is F32, which holds the decoded values exactly.
// A file that has both layouts gives the whole one.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/gguf/gguf_set.h"
#include "model/stored_model.h"

namespace caravan {

/// The fingerprint is of the config and of every tensor's name, type, shape and place.
class GgufCheckpoint : public StoredModel {
 public:
  /// Reads headers, no weights. `path`: the file, or any one of a split set.
  /// Errors: as GgufSet::Open, GgufConfigJson and ParseModelConfig; InvalidArgument - a tensor that
  ///         the config asks for is missing or of another shape, a vector is quantized, or there is
  ///         a tensor that no model of the family has. Each names the file and the tensor.
  static absl::StatusOr<std::unique_ptr<GgufCheckpoint>> Open(const std::string& path);

  const GgufMetadata& metadata() const { return files_->metadata(); }

  std::vector<std::string> TensorNames() const override;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Maps no page of the file in.
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  void Prefetch(absl::string_view name, int64_t offset, int64_t size) const override;

 private:
  class Mapper;
  struct Entry {
    TensorInfo info;
    std::string gguf_name;
    int64_t offset = 0;           // bytes from the GGUF tensor's begin
    std::string value_half = {};  // a kv_b_proj in two: gguf_name is its key half
  };
  GgufCheckpoint() = default;
  absl::Status ReadHalves(const Entry& entry, int64_t offset, absl::Span<std::byte> out) const;

  std::unique_ptr<GgufSet> files_;
  absl::flat_hash_map<std::string, Entry> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_CHECKPOINT_H_
