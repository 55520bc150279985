#include "worker/stage_weights.h"

#include <algorithm>
#include <atomic>
#include <iterator>
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
#include "kernels/tiled/tile_layout.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

// Read at a time: enough for a disk to stream, and small against the stage, so that the threads end
// together. Of what is not read to its place, each thread holds as much once more.
constexpr int64_t kPartBytes = int64_t{8} << 20;

// One copies while others wait for the disk. Other numbers were not tried.
constexpr int kReaders = 4;

/// One tensor's place in the stage's memory.
struct Placed {
  TensorSpec spec;
  TensorInfo stored;          // in the source
  TensorInfo loaded;          // in memory
  int64_t offset = 0;         // of the weights
  int64_t scale_offset = -1;  // of the FP8 scales; -1: none
  int64_t scale_bytes = 0;

  bool is_norm() const { return spec.tensor_class == TensorClass::kNorm; }
  /// Whether the source's rows become tiles.
  bool becomes_tiled() const { return loaded.layout != stored.layout; }
};

/// Lays tensors out one after another. Returns the bytes in all.
int64_t PlaceTensors(const TensorSource& source, std::vector<TensorSpec> specs,
                     std::vector<Placed>& placed) {
  int64_t end = 0;
  for (TensorSpec& spec : specs) {
    Placed tensor;
    tensor.stored = *source.Find(spec.name);
    tensor.loaded = LoadedInfo(spec, tensor.stored);
    tensor.offset = end;
    end += RoundUp(tensor.loaded.num_bytes(), kMatrixAlignment);
    if (const TensorInfo* scale = source.Find(ScaleName(spec.name)); scale != nullptr) {
      tensor.scale_offset = end;
      tensor.scale_bytes = scale->num_bytes();
      end += RoundUp(tensor.scale_bytes, kMatrixAlignment);
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
  int64_t offset;  // in the loaded tensor, and in the stored one
  int64_t size;    // bytes that it takes in memory
};

/// Bytes that a part of the tensor may take. One that becomes tiles is cut between them, where both
/// of its layouts have the same offset; a norm is not cut.
int64_t MaxPartBytes(const Placed& tensor) {
  if (tensor.is_norm()) return tensor.loaded.num_bytes();
  if (!tensor.becomes_tiled()) return kPartBytes;
  const int64_t tile_bytes = TileBytes(tensor.loaded.dtype, tensor.loaded.shape[1]);
  return std::max<int64_t>(1, kPartBytes / tile_bytes) * tile_bytes;
}

/// In the order of `placed`, which is that of a pack's files.
std::vector<Part> SplitTensors(const std::vector<Placed>& placed) {
  std::vector<Part> parts;
  for (const Placed& tensor : placed) {
    const int64_t num_bytes = tensor.loaded.num_bytes();
    const int64_t max_bytes = MaxPartBytes(tensor);
    for (int64_t offset = 0; offset < num_bytes; offset += max_bytes) {
      parts.push_back({&tensor, false, offset, std::min(max_bytes, num_bytes - offset)});
    }
    if (tensor.scale_offset >= 0) parts.push_back({&tensor, true, 0, tensor.scale_bytes});
  }
  return parts;
}

/// Where parts are read before they are in their places: one a thread, each of which grows to the
/// largest part's bytes, if it is used.
struct PartBuffers {
  std::vector<std::byte> stored;  // what is stored otherwise than it is loaded
  std::vector<std::byte> loaded;  // what the host cannot write to its place
};

/// So many bytes of the buffer.
std::byte* Take(std::vector<std::byte>& buffer, int64_t bytes) {
  if (std::ssize(buffer) < bytes) buffer.resize(static_cast<size_t>(bytes));
  return buffer.data();
}

/// Reads a part as it is loaded to `out`, in the host's memory.
absl::Status ReadLoaded(const TensorSource& source, const Part& part, PartBuffers& buffers,
                        std::byte* out) {
  const Placed& tensor = *part.tensor;
  const std::string name = part.is_scale ? ScaleName(tensor.spec.name) : tensor.spec.name;
  const auto read = [&](std::byte* to, int64_t size) {
    return Annotate(
        source.ReadPart(name, part.offset, absl::MakeSpan(to, static_cast<size_t>(size))), name);
  };
  if (part.is_scale || !(tensor.is_norm() || tensor.becomes_tiled())) return read(out, part.size);

  const TensorInfo& stored = tensor.stored;
  // Less than `size` where a norm grows, and where the last tile is made whole.
  const int64_t stored_bytes = std::min(part.size, stored.num_bytes() - part.offset);
  std::byte* const scratch = Take(buffers.stored, stored_bytes);
  CARAVAN_RETURN_IF_ERROR(read(scratch, stored_bytes));
  if (tensor.is_norm()) {
    DequantizeRow(stored.dtype, scratch, stored.num_elements(), reinterpret_cast<float*>(out));
  } else {
    const int64_t cols = stored.shape[1];
    TileMatrix(stored.dtype, stored_bytes / DTypeBytes(stored.dtype, cols), cols, scratch, out);
  }
  return absl::OkStatus();
}

/// Reads a part to its place among the weights at `data`.
absl::Status ReadPart(const TensorSource& source, const Part& part, Memory& memory, std::byte* data,
                      PartBuffers& buffers) {
  const Placed& tensor = *part.tensor;
  std::byte* const out = data + (part.is_scale ? tensor.scale_offset : tensor.offset) + part.offset;
  if (memory.is_host()) return ReadLoaded(source, part, buffers, out);
  std::byte* const loaded = Take(buffers.loaded, part.size);
  CARAVAN_RETURN_IF_ERROR(ReadLoaded(source, part, buffers, loaded));
  return memory.CopyIn(loaded, part.size, out);
}

/// Reads all tensors by a few threads, of which the caller's is one and the only one that calls
/// `progress`. After an error or a stop no further part is begun.
///
/// What was read stays in the page cache: it is the first that the kernel takes when memory is
/// short, and the next plan's stage, or the worker beside this one, may want it.
absl::Status ReadTensors(const TensorSource& source, const std::vector<Placed>& placed,
                         int64_t total_bytes, const StageWeights::Progress& progress,
                         Memory& memory, std::byte* data) {
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
    PartBuffers buffers;
    for (size_t i = next++; i < parts.size(); i = next++) {
      if (reports && !progress(read_bytes, total_bytes)) {
        return fail(absl::CancelledError("loading was stopped"));
      }
      const absl::Status status = ReadPart(source, parts[i], memory, data, buffers);
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
                  tensor.loaded.dtype,
                  tensor.loaded.shape[0],
                  tensor.loaded.shape[1],
                  scale,
                  tensor.loaded.layout};
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
                                                                 Memory& memory, Experts experts) {
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
  CARAVAN_ASSIGN_OR_RETURN(weights->array_, memory.Allocate(total_bytes, Memory::Use::kWhole));
  std::byte* const data = weights->array_.data();
  CARAVAN_RETURN_IF_ERROR(ReadTensors(source, placed, total_bytes, progress, memory, data));
  // The others may have read all parts but the caller's first before it came to ask.
  if (!progress(total_bytes, total_bytes)) return absl::CancelledError("loading was stopped");

  const LoadedTensors tensors(placed, data);
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
