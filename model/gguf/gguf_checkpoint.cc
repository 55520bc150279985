#include "model/gguf/gguf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "model/fingerprint.h"
#include "model/gguf/gguf_config.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

struct NamePair {
  absl::string_view name;
  absl::string_view gguf_name;
};

constexpr NamePair kModelNames[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

constexpr absl::string_view kKvB = "self_attn.kv_b_proj.weight";

/// Behind "model.layers.L." and "blk.L.".
constexpr NamePair kLayerNames[] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
    {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
    {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
    {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
    {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
    {kKvB, "attn_kv_b.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"mlp.gate.weight", "ffn_gate_inp.weight"},
    {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
    {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
    {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
    {"enorm.weight", "nextn.enorm.weight"},
    {"hnorm.weight", "nextn.hnorm.weight"},
    {"eh_proj.weight", "nextn.eh_proj.weight"},
    {"shared_head.norm.weight", "nextn.shared_head_norm.weight"},
};

/// Behind "model.layers.L.mlp.experts.E." and "blk.L.".
constexpr NamePair kExpertNames[] = {
    {"gate_proj.weight", "ffn_gate_exps.weight"},
    {"up_proj.weight", "ffn_up_exps.weight"},
    {"down_proj.weight", "ffn_down_exps.weight"},
};

template <size_t kSize>
absl::string_view GgufName(const NamePair (&names)[kSize], absl::string_view name) {
  for (const NamePair& pair : names) {
    if (pair.name == name) return pair.gguf_name;
  }
  CARAVAN_CHECK(false);  // model/tensor_table.h has a tensor that is not in these tables.
  return {};
}

}  // namespace

/// Finds the tensors of a config among the files', and keeps count of what it found.
class GgufCheckpoint::Mapper {
 public:
  Mapper(const GgufSet& files, const ModelConfig& config,
         absl::flat_hash_map<std::string, Entry>& tensors)
      : files_(files), config_(config), tensors_(tensors) {}

  /// The embedding, or the head's.
  absl::Status MapModel(const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) {
      CARAVAN_RETURN_IF_ERROR(Map(spec, std::string(GgufName(kModelNames, spec.name))));
    }
    return absl::OkStatus();
  }

  absl::Status MapLayer(int layer, const std::vector<TensorSpec>& specs) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::string gguf_prefix = absl::StrCat("blk.", layer, ".");
    const std::string expert_prefix = absl::StrCat(prefix, "mlp.experts.");
    for (const TensorSpec& spec : specs) {
      absl::string_view rest = spec.name;
      if (absl::ConsumePrefix(&rest, expert_prefix)) {
        const size_t dot = rest.find('.');
        int64_t expert = 0;
        CARAVAN_CHECK(absl::SimpleAtoi(rest.substr(0, dot), &expert));
        CARAVAN_RETURN_IF_ERROR(MapExpert(
            spec, expert, absl::StrCat(gguf_prefix, GgufName(kExpertNames, rest.substr(dot + 1)))));
        continue;
      }
      CARAVAN_CHECK(absl::ConsumePrefix(&rest, prefix));
      const std::string gguf_name = absl::StrCat(gguf_prefix, GgufName(kLayerNames, rest));
      if (rest == kKvB) {
        CARAVAN_RETURN_IF_ERROR(MapKvB(spec, gguf_prefix, gguf_name));
      } else {
        CARAVAN_RETURN_IF_ERROR(Map(spec, gguf_name));
      }
    }
    return absl::OkStatus();
  }

  /// What the files have beyond what was mapped must be known to change nothing.
  absl::Status CheckRest() const {
    for (const std::string& name : files_.TensorNames()) {
      if (!mapped_.contains(name) && !IsSpare(name)) {
        return Wrong(name, "is none that a model of this config has");
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Wrong(absl::string_view gguf_name, absl::string_view what) const {
    const GgufFile* const file = files_.FileOf(gguf_name);
    return absl::InvalidArgumentError(absl::StrCat(file == nullptr ? files_.path() : file->path(),
                                                   ": tensor ", gguf_name, ": ", what));
  }

  absl::StatusOr<const TensorInfo*> FindInShape(const std::string& gguf_name,
                                                const std::vector<int64_t>& shape) {
    const TensorInfo* const info = files_.Find(gguf_name);
    if (info == nullptr) return Wrong(gguf_name, "is missing");
    if (info->shape != shape) {
      return Wrong(gguf_name, absl::StrCat("has shape ", ShapeText(info->shape),
                                           ", but the metadata ask for ", ShapeText(shape)));
    }
    if (shape.size() == 1 && BlockOf(info->dtype).values != 1) {
      return Wrong(gguf_name, absl::StrCat("has type ", DTypeName(info->dtype),
                                           ", but a vector must be F32, F16 or BF16"));
    }
    mapped_.insert(gguf_name);
    return info;
  }

  absl::Status Map(const TensorSpec& spec, const std::string& gguf_name) {
    CARAVAN_ASSIGN_OR_RETURN(const TensorInfo* const info, FindInShape(gguf_name, spec.shape));
    tensors_[spec.name] = {*info, gguf_name, 0};
    return absl::OkStatus();
  }

  absl::Status MapExpert(const TensorSpec& spec, int64_t expert, const std::string& gguf_name) {
    CARAVAN_ASSIGN_OR_RETURN(
        const TensorInfo* const stack,
        FindInShape(gguf_name, {config_.n_routed_experts, spec.shape[0], spec.shape[1]}));
    const TensorInfo info = {stack->dtype, spec.shape};
    tensors_[spec.name] = {info, gguf_name, expert * info.num_bytes()};
    return absl::OkStatus();
  }

  /// kv_b_proj, whole or in two: see the header.
  absl::Status MapKvB(const TensorSpec& spec, absl::string_view gguf_prefix,
                      const std::string& gguf_name) {
    const std::string k_name = absl::StrCat(gguf_prefix, "attn_k_b.weight");
    const std::string v_name = absl::StrCat(gguf_prefix, "attn_v_b.weight");
    const bool has_halves = files_.Find(k_name) != nullptr || files_.Find(v_name) != nullptr;
    if (files_.Find(gguf_name) != nullptr || !has_halves) return Map(spec, gguf_name);
    const MlaShape mla = config_.Mla();
    CARAVAN_RETURN_IF_ERROR(
        FindInShape(k_name, {mla.num_heads, mla.kv_lora_rank, mla.qk_nope_head_dim}).status());
    CARAVAN_RETURN_IF_ERROR(
        FindInShape(v_name, {mla.num_heads, mla.v_head_dim, mla.kv_lora_rank}).status());
    const TensorInfo info = {.dtype = DType::kF32, .shape = spec.shape};
    tensors_[spec.name] = {info, k_name, 0, v_name};
    return absl::OkStatus();
  }

  /// Copies, and the layers of multi-token prediction after the first.
  bool IsSpare(absl::string_view gguf_name) const {
    int layer = -1;
    absl::string_view rest = gguf_name;
    const bool is_layer = absl::ConsumePrefix(&rest, "blk.") &&
                          absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer);
    if (!is_layer) return false;
    const int end_layer = config_.num_hidden_layers + config_.num_nextn_predict_layers;
    if (layer >= config_.num_hidden_layers && layer < end_layer) {
      if (layer > config_.num_hidden_layers) return true;
      if (absl::EndsWith(gguf_name, ".nextn.embed_tokens.weight") ||
          absl::EndsWith(gguf_name, ".nextn.shared_head_head.weight")) {
        return true;
      }
    }
    return (absl::EndsWith(gguf_name, ".attn_k_b.weight") ||
            absl::EndsWith(gguf_name, ".attn_v_b.weight")) &&
           mapped_.contains(absl::StrCat("blk.", layer, ".attn_kv_b.weight"));
  }

  const GgufSet& files_;
  const ModelConfig& config_;
  absl::flat_hash_map<std::string, Entry>& tensors_;
  absl::flat_hash_set<std::string> mapped_;  // names in GGUF
};

absl::StatusOr<std::unique_ptr<GgufCheckpoint>> GgufCheckpoint::Open(const std::string& path) {
  auto checkpoint = std::unique_ptr<GgufCheckpoint>(new GgufCheckpoint());
  CARAVAN_ASSIGN_OR_RETURN(checkpoint->files_, GgufSet::Open(path));
  const GgufSet& files = *checkpoint->files_;
  CARAVAN_ASSIGN_OR_RETURN(std::string config_json, GgufConfigJson(files.metadata(), files));
  CARAVAN_RETURN_IF_ERROR(checkpoint->SetConfig(
      path, std::move(config_json), absl::StrCat(files.path(), ": metadata as config.json")));

  const ModelConfig& config = checkpoint->config();
  Mapper mapper(files, config, checkpoint->tensors_);
  CARAVAN_RETURN_IF_ERROR(mapper.MapModel(EmbeddingTensors(config)));
  CARAVAN_RETURN_IF_ERROR(mapper.MapModel(HeadTensors(config)));
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    CARAVAN_RETURN_IF_ERROR(mapper.MapLayer(layer, LayerTensors(config, layer)));
  }
  if (config.num_nextn_predict_layers > 0) {
    CARAVAN_RETURN_IF_ERROR(mapper.MapLayer(config.num_hidden_layers, MtpTensors(config)));
  }
  CARAVAN_RETURN_IF_ERROR(mapper.CheckRest());

  Fingerprint fingerprint;
  fingerprint.AddText(checkpoint->config_json());
  for (const std::string& name : checkpoint->TensorNames()) {
    const Entry& entry = checkpoint->tensors_[name];
    fingerprint.AddTensor(name, entry.info);
    fingerprint.AddInt(entry.offset);
    for (const std::string& gguf_name : {entry.gguf_name, entry.value_half}) {
      if (gguf_name.empty()) continue;
      const GgufFile& file = *files.FileOf(gguf_name);
      fingerprint.AddTensor(gguf_name, *file.Find(gguf_name));
      fingerprint.AddText(std::filesystem::path(file.path()).filename().string());
      fingerprint.AddInt(file.Offset(gguf_name));
      fingerprint.AddInt(static_cast<int64_t>(file.Bytes(gguf_name).size()));
    }
  }
  checkpoint->set_fingerprint(fingerprint.value());
  return checkpoint;
}

std::vector<std::string> GgufCheckpoint::TensorNames() const { return SortedKeys(tensors_); }

const TensorInfo* GgufCheckpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second.info;
}

absl::Status GgufCheckpoint::ReadPart(absl::string_view name, int64_t offset,
                                      absl::Span<std::byte> out) const {
  const auto it = tensors_.find(name);
  CARAVAN_CHECK(it != tensors_.end());
  const Entry& entry = it->second;
  CARAVAN_CHECK(offset >= 0 && offset + static_cast<int64_t>(out.size()) <= entry.info.num_bytes());
  if (!entry.value_half.empty()) return ReadHalves(entry, offset, out);
  return files_->ReadPart(entry.gguf_name, entry.offset + offset, out);
}

void GgufCheckpoint::Prefetch(absl::string_view name, int64_t offset, int64_t size) const {
  const auto it = tensors_.find(name);
  CARAVAN_CHECK(it != tensors_.end());
  const Entry& entry = it->second;
  // Halves are small, and lie elsewhere.
  if (entry.value_half.empty()) files_->Prefetch(entry.gguf_name, entry.offset + offset, size);
}

absl::Status GgufCheckpoint::ReadHalves(const Entry& entry, int64_t offset,
                                        absl::Span<std::byte> out) const {
  const MlaShape mla = config().Mla();
  const int64_t latent = mla.kv_lora_rank;
  const int64_t nope = mla.qk_nope_head_dim;
  const int64_t head_rows = nope + mla.v_head_dim;
  const int64_t row_bytes = latent * static_cast<int64_t>(sizeof(float));
  // Decodes a whole half of one head, also where a few rows of it are asked for.
  const auto read_half = [&](const std::string& gguf_name, int64_t head, int64_t rows, int64_t cols,
                             std::vector<float>& decoded) -> absl::Status {
    const DType dtype = files_->Find(gguf_name)->dtype;
    const int64_t bytes = DTypeBytes(dtype, rows * cols);
    std::vector<std::byte> stored(static_cast<size_t>(bytes));
    CARAVAN_RETURN_IF_ERROR(files_->ReadPart(gguf_name, head * bytes, absl::MakeSpan(stored)));
    decoded.resize(static_cast<size_t>(rows * cols));
    DequantizeRow(dtype, stored.data(), rows * cols, decoded.data());
    return absl::OkStatus();
  };
  std::vector<float> keys;    // W_UK^T of key_head
  std::vector<float> values;  // W_UV of value_head
  int64_t key_head = -1;
  int64_t value_head = -1;
  std::vector<float> key_row(static_cast<size_t>(latent));
  while (!out.empty()) {
    const int64_t row = offset / row_bytes;
    const int64_t head = row / head_rows;
    const int64_t row_in_head = row % head_rows;
    const float* values_of_row = key_row.data();
    if (row_in_head >= nope) {
      if (head != value_head) {
        CARAVAN_RETURN_IF_ERROR(read_half(entry.value_half, head, mla.v_head_dim, latent, values));
        value_head = head;
      }
      values_of_row = values.data() + (row_in_head - nope) * latent;
    } else {
      if (head != key_head) {
        CARAVAN_RETURN_IF_ERROR(read_half(entry.gguf_name, head, latent, nope, keys));
        key_head = head;
      }
      for (int64_t i = 0; i < latent; ++i) key_row[i] = keys[i * nope + row_in_head];
    }
    const int64_t skip = offset % row_bytes;
    const size_t count = std::min(out.size(), static_cast<size_t>(row_bytes - skip));
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(values_of_row) + skip, count);
    out.remove_prefix(count);
    offset += static_cast<int64_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace caravan
