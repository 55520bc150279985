#include "model/synth/synthetic_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sorted_keys.h"
#include "base/status_macros.h"
#include "model/fingerprint.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

// What the weights depend on besides config, formats and seed: another number for other weights.
constexpr int64_t kGeneration = 1;

constexpr float kNormNoise = 0.02f;
constexpr float kBiasNoise = 0.01f;

// How much smaller than other matrices o_proj is.
constexpr float kAttentionShare = 0.5f;

/// FP8 codes are drawn with this standard deviation: the largest, 3.5 times that, is in the
/// format's range (448).
constexpr float kFp8CodeStddev = 64;

/// What checkpoints store it as.
DType PublishedType(TensorClass tensor_class, bool is_fp8) {
  switch (tensor_class) {
    case TensorClass::kNorm:
      return DType::kF32;
    case TensorClass::kEmbedding:
    case TensorClass::kRouter:
    case TensorClass::kHead:
    case TensorClass::kMtpProjection:
      return DType::kBF16;
    default:
      return is_fp8 ? DType::kF8E4M3 : DType::kBF16;
  }
}

/// The config with another number of layers.
absl::StatusOr<std::string> WithLayers(const std::string& config_json, int num_layers,
                                       const std::string& origin) {
  CARAVAN_ASSIGN_OR_RETURN(nlohmann::json config, ParseJson(config_json, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(config, origin));
  CARAVAN_ASSIGN_OR_RETURN(const int64_t there, fields.Int("num_hidden_layers", 1, 1 << 20));
  if (num_layers > there || num_layers < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": has ", there, " layers, so not the first ", num_layers));
  }
  config["num_hidden_layers"] = num_layers;
  return config.dump(2) + "\n";
}

}  // namespace

absl::StatusOr<std::unique_ptr<SyntheticModel>> SyntheticModel::Create(const Options& options) {
  const std::string& path = options.config_path;
  CARAVAN_ASSIGN_OR_RETURN(std::string config_json, ReadFile(path, kMaxConfigBytes));
  if (options.num_layers != 0) {
    CARAVAN_ASSIGN_OR_RETURN(config_json, WithLayers(config_json, options.num_layers, path));
  }
  auto model = std::unique_ptr<SyntheticModel>(new SyntheticModel(options.seed));
  CARAVAN_RETURN_IF_ERROR(model->SetConfig(path, std::move(config_json), path));
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json config, ParseJson(model->config_json(), path));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(config, path));
  model->AddAll(options.types, /*is_fp8=*/fields.Has("quantization_config"));

  Fingerprint fingerprint;
  fingerprint.AddText("caravan synth");
  fingerprint.AddInt(kGeneration);
  fingerprint.AddInt(static_cast<int64_t>(options.seed));
  fingerprint.AddText(model->config_json());
  for (const std::string& name : model->TensorNames()) {
    fingerprint.AddTensor(name, *model->Find(name));
  }
  model->set_fingerprint(fingerprint.value());
  return model;
}

void SyntheticModel::Add(const std::string& name, TensorInfo info, float mean, float stddev) {
  Fingerprint key;
  key.AddInt(kGeneration);
  key.AddInt(static_cast<int64_t>(seed_));
  key.AddText(name);
  RandomTensor values(info.dtype, key.value(), mean, stddev);
  tensors_.try_emplace(name, Tensor{std::move(info), values});
}

void SyntheticModel::AddAll(const PackTypes& types, bool is_fp8) {
  StageSpec whole;
  whole.end_layer = config().num_hidden_layers;
  whole.embeds = true;
  whole.has_head = true;
  whole.drafts = config().num_nextn_predict_layers > 0;
  for (const TensorSpec& spec : StageTensors(config(), whole)) {
    TensorInfo info;
    info.dtype = PublishedType(spec.tensor_class, is_fp8);
    info.shape = spec.shape;
    if (spec.tensor_class == TensorClass::kNorm) {
      const bool is_bias = absl::EndsWith(spec.name, "e_score_correction_bias");
      Add(spec.name, std::move(info), is_bias ? 0 : 1, is_bias ? kBiasNoise : kNormNoise);
      continue;
    }
    info.dtype = PackedInfo(types, spec, info).dtype;
    float stddev = 1;
    if (spec.tensor_class != TensorClass::kEmbedding) {
      stddev = 1 / std::sqrt(static_cast<float>(spec.shape[1]));
    }
    if (absl::EndsWith(spec.name, ".o_proj.weight")) stddev *= kAttentionShare;
    if (info.dtype != DType::kF8E4M3) {
      Add(spec.name, std::move(info), 0, stddev);
      continue;
    }
    Add(ScaleName(spec.name), ScaleInfo(spec), stddev / kFp8CodeStddev, 0);
    Add(spec.name, std::move(info), 0, kFp8CodeStddev);
  }
}

std::vector<std::string> SyntheticModel::TensorNames() const { return SortedKeys(tensors_); }

const TensorInfo* SyntheticModel::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second.info;
}

absl::Status SyntheticModel::ReadPart(absl::string_view name, int64_t offset,
                                      absl::Span<std::byte> out) const {
  const auto it = tensors_.find(name);
  CARAVAN_CHECK(it != tensors_.end());
  const Tensor& tensor = it->second;
  const int64_t size = static_cast<int64_t>(out.size());
  CARAVAN_CHECK(offset >= 0 && offset + size <= tensor.info.num_bytes());
  const int64_t block_bytes = BlockOf(tensor.info.dtype).bytes;
  // Blocks that are wanted whole go straight to their place, those at the ends by way of a copy.
  std::vector<std::byte> copy(static_cast<size_t>(block_bytes));
  for (int64_t done = 0; done < size;) {
    const int64_t block = (offset + done) / block_bytes;
    const int64_t skipped = (offset + done) % block_bytes;
    const int64_t whole_blocks = (size - done) / block_bytes;
    if (skipped == 0 && whole_blocks > 0) {
      tensor.values.Fill(block, whole_blocks, out.data() + done);
      done += whole_blocks * block_bytes;
      continue;
    }
    const int64_t wanted = std::min(block_bytes - skipped, size - done);
    tensor.values.Fill(block, 1, copy.data());
    std::memcpy(out.data() + done, copy.data() + skipped, static_cast<size_t>(wanted));
    done += wanted;
  }
  return absl::OkStatus();
}

absl::StatusOr<TextFile> SyntheticModel::ReadText(absl::string_view name) const {
  return absl::NotFoundError(absl::StrCat(path(), ": a synthetic model has no ", name));
}

}  // namespace caravan
