#include "worker/experts/expert_files.h"

#include <algorithm>
#include <filesystem>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/pack/file_hash.h"
#include "model/pack/pack_manifest.h"
#include "model/tensor_table.h"

namespace caravan {

std::vector<int> ExpertFiles::LayersOf(const ModelConfig& config, const StageSpec& stage) {
  std::vector<int> layers;
  for (int layer = stage.first_layer; layer < stage.end_layer; ++layer) {
    if (config.IsMoeLayer(layer)) layers.push_back(layer);
  }
  if (stage.drafts && config.IsMoeLayer(config.num_hidden_layers)) {
    layers.push_back(config.num_hidden_layers);
  }
  return layers;
}

absl::StatusOr<std::unique_ptr<ExpertFiles>> ExpertFiles::Open(const ModelConfig& config,
                                                               const StageSpec& stage,
                                                               const TensorSource& source) {
  std::unique_ptr<ExpertFiles> files(new ExpertFiles(static_cast<int>(config.n_routed_experts)));
  files->layer_numbers_ = LayersOf(config, stage);
  CARAVAN_CHECK(!files->layer_numbers_.empty());
  for (const int number : files->layer_numbers_) {
    CARAVAN_ASSIGN_OR_RETURN(Layer layer, files->OpenLayer(config, number, source));
    files->layers_.push_back(std::move(layer));
  }
  return files;
}

absl::StatusOr<ExpertFiles::Layer> ExpertFiles::OpenLayer(const ModelConfig& config, int number,
                                                          const TensorSource& source) {
  const ExpertFile* const packed = source.FindExperts(number);
  if (packed == nullptr) {
    return absl::FailedPreconditionError(
        "routed experts can stay on disk only where the model is a packed one on this machine; "
        "`caravan pack` makes one");
  }
  const PackedExperts& experts = packed->experts;
  Layer layer;
  layer.offset = experts.offset;
  layer.stride = experts.stride;
  layer.hashes = experts.hashes;
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat(packed->path, ": experts of layer ", number, ": ", what));
  };
  if (experts.count != config.n_routed_experts) {
    return wrong(
        absl::StrCat("are ", experts.count, ", but the config says ", config.n_routed_experts));
  }
  CARAVAN_ASSIGN_OR_RETURN(layer.copies.emplace_back(), OpenCopy(packed->path, experts));
  for (const std::string& mirror : packed->mirrors) {
    CARAVAN_ASSIGN_OR_RETURN(layer.copies.emplace_back(), OpenCopy(mirror, experts));
  }
  const auto find = [&](const std::string& name) {
    return absl::c_find_if(experts.tensors,
                           [&](const PackedTensor& tensor) { return tensor.name == name; });
  };
  for (const auto& [name, place] :
       {std::pair{"gate_proj.weight", &layer.gate}, std::pair{"up_proj.weight", &layer.up},
        std::pair{"down_proj.weight", &layer.down}}) {
    const auto tensor = find(name);
    if (tensor == experts.tensors.end() || tensor->info.shape.size() != 2) {
      return wrong(absl::StrCat("have no matrix ", name));
    }
    place->matrix.dtype = tensor->info.dtype;
    place->matrix.rows = tensor->info.shape[0];
    place->matrix.cols = tensor->info.shape[1];
    place->matrix.layout = tensor->info.layout;
    place->offset = tensor->offset;
    const auto scale = find(ScaleName(name));
    if (scale != experts.tensors.end()) place->scale_offset = scale->offset;
  }
  return layer;
}

absl::StatusOr<ExpertFiles::Copy> ExpertFiles::OpenCopy(const std::string& path,
                                                        const PackedExperts& experts) {
  Copy copy;
  CARAVAN_ASSIGN_OR_RETURN(copy.file, DirectFile::Open(path));
  if (copy.file->bytes() < experts.offset + experts.count * experts.stride) {
    return absl::DataLossError(
        absl::StrCat(path, ": has ", copy.file->bytes(), " bytes, and ends before its experts do"));
  }
  const std::string directory = std::filesystem::path(path).parent_path().string();
  const auto disk = absl::c_find(disks_, directory);
  copy.disk = static_cast<int>(disk - disks_.begin());
  if (disk == disks_.end()) disks_.push_back(directory);
  return copy;
}

int ExpertFiles::NextLayer(int layer) const {
  const auto next = absl::c_upper_bound(layer_numbers_, layer);
  return next == layer_numbers_.end() ? layer_numbers_.front() : *next;
}

int64_t ExpertFiles::num_experts() const {
  return static_cast<int64_t>(layers_.size()) * experts_per_layer_;
}

int64_t ExpertFiles::max_run_bytes() const {
  int64_t most = 0;
  for (const Layer& layer : layers_) most = std::max(most, layer.stride);
  return most;
}

FileRead ExpertFiles::ReadOf(ExpertKey key, int copy, std::byte* run) const {
  const Layer& layer = Of(key.layer);
  return {layer.copies[static_cast<size_t>(copy)].file.get(),
          layer.offset + key.expert * layer.stride,
          absl::MakeSpan(run, static_cast<size_t>(layer.stride))};
}

FfnWeights ExpertFiles::WeightsAt(ExpertKey key, const std::byte* run) const {
  const Layer& layer = Of(key.layer);
  return {layer.gate.At(run), layer.up.At(run), layer.down.At(run)};
}

Matrix ExpertFiles::Place::At(const std::byte* run) const {
  Matrix placed = matrix;
  placed.data = run + offset;
  if (scale_offset >= 0) placed.scale_inv = reinterpret_cast<const float*>(run + scale_offset);
  return placed;
}

absl::Status ExpertFiles::CheckHash(ExpertKey key, int copy, const std::byte* run) const {
  const Layer& layer = Of(key.layer);
  const std::string hash = HashOf(absl::MakeConstSpan(run, static_cast<size_t>(layer.stride)));
  const std::string& packed = layer.hashes[static_cast<size_t>(key.expert)];
  if (hash == packed) return absl::OkStatus();
  return Error(key, copy, absl::StrCat("hash ", hash, ", but it was packed with ", packed));
}

absl::Status ExpertFiles::Error(ExpertKey key, int copy, absl::string_view what) const {
  return absl::DataLossError(absl::StrCat("layer ", key.layer, ", expert ", key.expert, ", in ",
                                          PathOf(key.layer, copy), ": ", what));
}

const ExpertFiles::Layer& ExpertFiles::Of(int layer) const {
  const auto it = absl::c_lower_bound(layer_numbers_, layer);
  CARAVAN_CHECK(it != layer_numbers_.end() && *it == layer);
  return layers_[static_cast<size_t>(it - layer_numbers_.begin())];
}

}  // namespace caravan
