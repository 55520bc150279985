#include "worker/stage_weights.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

// What Matrix asks for, and a cache line.
constexpr int64_t kAlignment = 64;

// Read at a time: enough for a disk to stream, and small against the stage, so that the threads end
// together.
constexpr int64_t kPartBytes = int64_t{8} << 20;

// One copies while others wait for the disk. Other numbers were not tried.
constexpr int kReaders = 4;

/// One tensor's place in the stage's memory.
struct Placed {
  TensorSpec spec;
  TensorInfo info;     // as stored in the source
  int64_t offset = 0;  // of the weights (f32 for norms)
  int64_t num_bytes = 0;
  int64_t scale_offset = -1;  // of the FP8 scales; -1: none
  int64_t scale_bytes = 0;
};

/// Lays tensors out one after another. Returns the bytes in all.
int64_t PlaceTensors(const TensorSource& source, std::vector<TensorSpec> specs,
                     std::vector<Placed>& placed) {
  int64_t end = 0;
  for (TensorSpec& spec : specs) {
    Placed tensor;
    tensor.info = *source.Find(spec.name);
    tensor.offset = end;
    tensor.num_bytes = spec.tensor_class == TensorClass::kNorm
                           ? tensor.info.num_elements() * static_cast<int64_t>(sizeof(float))
                           : tensor.info.num_bytes();
    end += RoundUp(tensor.num_bytes, kAlignment);
    if (const TensorInfo* scale = source.Find(ScaleName(spec.name)); scale != nullptr) {
      tensor.scale_offset = end;
      tensor.scale_bytes = scale->num_bytes();
      end += RoundUp(tensor.scale_bytes, kAlignment);
    }
    tensor.spec = std::move(spec);
    placed.push_back(std::move(tensor));
  }
  return end;
}

/// Part of a tensor, or of its scales.
struct Part {
  const Placed* tensor;
  bool is_scale;
  int64_t offset;  // in the tensor
  int64_t size;    // in bytes
};

/// In the order of `placed`, which is that of a pack's files.
std::vector<Part> SplitTensors(const std::vector<Placed>& placed) {
  std::vector<Part> parts;
  for (const Placed& tensor : placed) {
    if (tensor.spec.tensor_class == TensorClass::kNorm) {
      parts.push_back({&tensor, false, 0, tensor.num_bytes});
      continue;
    }
    for (int64_t offset = 0; offset < tensor.num_bytes; offset += kPartBytes) {
      parts.push_back({&tensor, false, offset, std::min(kPartBytes, tensor.num_bytes - offset)});
    }
    if (tensor.scale_offset >= 0) parts.push_back({&tensor, true, 0, tensor.scale_bytes});
  }
  return parts;
}

absl::Status ReadPart(const TensorSource& source, const Part& part, std::byte* memory) {
  const Placed& tensor = *part.tensor;
  const std::string& name = tensor.spec.name;
  if (tensor.spec.tensor_class == TensorClass::kNorm) {
    std::vector<std::byte> stored(static_cast<size_t>(tensor.info.num_bytes()));
    CARAVAN_RETURN_IF_ERROR(Annotate(source.Read(name, absl::MakeSpan(stored)), name));
    DequantizeRow(tensor.info.dtype, stored.data(), tensor.info.num_elements(),
                  reinterpret_cast<float*>(memory + tensor.offset));
    return absl::OkStatus();
  }
  const std::string stored = part.is_scale ? ScaleName(name) : name;
  std::byte* const out =
      memory + (part.is_scale ? tensor.scale_offset : tensor.offset) + part.offset;
  return Annotate(
      source.ReadPart(stored, part.offset, absl::MakeSpan(out, static_cast<size_t>(part.size))),
      stored);
}

/// Reads all tensors by a few threads, of which the caller's is one and the only one that calls
/// `progress`. After an error or a stop no further part is begun.
///
/// What was read stays in the page cache: it is the first that the kernel takes when memory is
/// short, and the next plan's stage, or the worker beside this one, may want it.
absl::Status ReadTensors(const TensorSource& source, const std::vector<Placed>& placed,
                         int64_t total_bytes, const StageWeights::Progress& progress,
                         std::byte* memory) {
  const std::vector<Part> parts = SplitTensors(placed);
  std::atomic<size_t> next = 0;
  std::atomic<int64_t> read_bytes = 0;
  Mutex mu;
  absl::Status first_error;
  const auto fail = [&](const absl::Status& status) {
    next = parts.size();
    MutexLock lock(&mu);
    first_error.Update(status);
  };
  const auto read_parts = [&](bool reports) {
    for (size_t i = next++; i < parts.size(); i = next++) {
      if (reports && !progress(read_bytes, total_bytes)) {
        return fail(absl::CancelledError("loading was stopped"));
      }
      const absl::Status status = ReadPart(source, parts[i], memory);
      if (!status.ok()) return fail(status);
      read_bytes += parts[i].size;
    }
  };
  std::vector<std::unique_ptr<NamedThread>> others;
  for (int i = 1; i < kReaders; ++i) {
    others.push_back(std::make_unique<NamedThread>("stage-reader", [&] { read_parts(false); }));
  }
  read_parts(true);
  others.clear();  // joins
  MutexLock lock(&mu);
  return first_error;
}

/// Finds loaded tensors by name.
class LoadedTensors {
 public:
  LoadedTensors(const std::vector<Placed>& placed, const std::byte* memory) : memory_(memory) {
    for (const Placed& tensor : placed) by_name_[tensor.spec.name] = &tensor;
  }

  /// A zero Matrix when the model has no such tensor.
  Matrix MatrixOf(const std::string& name) const {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) return Matrix{};
    const Placed& tensor = *it->second;
    const float* scale = tensor.scale_offset < 0
                             ? nullptr
                             : reinterpret_cast<const float*>(memory_ + tensor.scale_offset);
    return Matrix{memory_ + tensor.offset,
                  tensor.info.dtype,
                  tensor.info.shape[0],
                  tensor.info.shape[1],
                  scale,
                  tensor.info.layout};
  }

  /// Null when the model has no such tensor.
  const float* VectorOf(const std::string& name) const {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr
                                : reinterpret_cast<const float*>(memory_ + it->second->offset);
  }

  FfnWeights FfnOf(const std::string& prefix) const {
    return FfnWeights{MatrixOf(prefix + "gate_proj.weight"), MatrixOf(prefix + "up_proj.weight"),
                      MatrixOf(prefix + "down_proj.weight")};
  }

 private:
  const std::byte* const memory_;
  absl::flat_hash_map<std::string, const Placed*> by_name_;
};

LayerWeights MakeLayer(const ModelConfig& config, int layer, const LoadedTensors& tensors) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  LayerWeights weights;
  weights.layer = layer;
  weights.input_layernorm = tensors.VectorOf(prefix + "input_layernorm.weight");
  weights.q_proj = tensors.MatrixOf(attention + "q_proj.weight");
  weights.q_a_proj = tensors.MatrixOf(attention + "q_a_proj.weight");
  weights.q_a_layernorm = tensors.VectorOf(attention + "q_a_layernorm.weight");
  weights.q_b_proj = tensors.MatrixOf(attention + "q_b_proj.weight");
  weights.kv_a_proj_with_mqa = tensors.MatrixOf(attention + "kv_a_proj_with_mqa.weight");
  weights.kv_a_layernorm = tensors.VectorOf(attention + "kv_a_layernorm.weight");
  weights.kv_b_proj = tensors.MatrixOf(attention + "kv_b_proj.weight");
  weights.o_proj = tensors.MatrixOf(attention + "o_proj.weight");
  weights.post_attention_layernorm = tensors.VectorOf(prefix + "post_attention_layernorm.weight");
  if (!config.IsMoeLayer(layer)) {
    weights.dense = tensors.FfnOf(prefix + "mlp.");
    return weights;
  }
  weights.dense = tensors.FfnOf(prefix + "mlp.shared_experts.");
  weights.router = tensors.MatrixOf(prefix + "mlp.gate.weight");
  weights.e_score_correction_bias = tensors.VectorOf(prefix + "mlp.gate.e_score_correction_bias");
  for (int64_t expert = 0; expert < config.n_routed_experts; ++expert) {
    const FfnWeights ffn = tensors.FfnOf(absl::StrCat(prefix, "mlp.experts.", expert, "."));
    if (ffn.gate.rows == 0) break;  // they were left
    weights.experts.push_back(ffn);
  }
  return weights;
}

MtpWeights MakeMtp(const ModelConfig& config, const LoadedTensors& tensors) {
  const std::string prefix = absl::StrCat("model.layers.", config.num_hidden_layers, ".");
  MtpWeights weights;
  weights.enorm = tensors.VectorOf(prefix + "enorm.weight");
  weights.hnorm = tensors.VectorOf(prefix + "hnorm.weight");
  weights.eh_proj = tensors.MatrixOf(prefix + "eh_proj.weight");
  weights.layer = MakeLayer(config, config.num_hidden_layers, tensors);
  weights.head_norm = tensors.VectorOf(prefix + "shared_head.norm.weight");
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StageWeights>> StageWeights::Load(const ModelConfig& config,
                                                                 const StageSpec& stage,
                                                                 const TensorSource& source,
                                                                 const Progress& progress,
                                                                 Experts experts) {
  std::vector<TensorSpec> specs = StageTensors(config, stage);
  CARAVAN_RETURN_IF_ERROR(CheckTensors(source, specs).status());
  if (experts == Experts::kLeave) {
    std::erase_if(specs, [](const TensorSpec& spec) {
      return spec.tensor_class == TensorClass::kRoutedExpert;
    });
  }

  std::unique_ptr<StageWeights> weights(new StageWeights);
  std::vector<Placed> placed;
  const int64_t total_bytes = PlaceTensors(source, std::move(specs), placed);
  CARAVAN_ASSIGN_OR_RETURN(weights->memory_, Buffer::Allocate(total_bytes));
  std::byte* const memory = weights->memory_.data();
  weights->memory_.PreferLargePages();
  CARAVAN_RETURN_IF_ERROR(ReadTensors(source, placed, total_bytes, progress, memory));
  progress(total_bytes, total_bytes);

  const LoadedTensors tensors(placed, memory);
  if (stage.embeds || stage.drafts) {
    weights->embedding = tensors.MatrixOf("model.embed_tokens.weight");
  }
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    weights->layers.push_back(MakeLayer(config, layer, tensors));
  }
  if (stage.has_head) {
    weights->final_layernorm = tensors.VectorOf("model.norm.weight");
    weights->lm_head = tensors.MatrixOf(config.tie_word_embeddings ? "model.embed_tokens.weight"
                                                                   : "lm_head.weight");
  }
  if (stage.drafts) weights->mtp = MakeMtp(config, tensors);
  return weights;
}

}  // namespace caravan
