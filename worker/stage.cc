#include "worker/stage.h"

#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/kv_rows.h"
#include "model/pack/pack_manifest.h"
#include "worker/sequence_table.h"
#include "worker/step_check.h"

namespace caravan {
namespace {

std::unique_ptr<HeatKeeper> MakeHeatKeeper(const Stage::Options& options,
                                           const TensorSource& source,
                                           const ExpertCache::Shape& shape) {
  std::string directory = *options.expert_heat;
  if (directory.empty()) {
    directory = std::filesystem::path(source.FindExperts(shape.first_layer)->path).parent_path();
  }
  HeatKeeper::Options heat;
  heat.path = HeatKeeper::PathOf(directory, shape);
  heat.model_fingerprint = options.model_fingerprint;
  return std::make_unique<HeatKeeper>(std::move(heat));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(const ModelConfig& config,
                                                     const StageSpec& spec,
                                                     const TensorSource& source,
                                                     std::unique_ptr<Backend> backend,
                                                     const Options& options,
                                                     const StageWeights::Progress& progress) {
  if (spec.drafts && (!spec.has_head || config.num_nextn_predict_layers == 0)) {
    return absl::InvalidArgumentError(absl::StrCat("no such stage: ", DescribeStage(spec),
                                                   ", of a model with ",
                                                   config.num_nextn_predict_layers, " MTP layers"));
  }
  if (spec.first_layer < 0 || spec.first_layer >= spec.end_layer ||
      spec.end_layer > config.num_hidden_layers || options.max_step_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("no such stage: ", DescribeStage(spec), " of ",
                                                   config.num_hidden_layers, ", steps of ",
                                                   options.max_step_tokens, " tokens"));
  }
  CARAVAN_RETURN_IF_ERROR(CheckKvDType(config.Mla(), options.kv_dtype));
  std::unique_ptr<ExpertStore> experts;
  if (options.expert_budget_bytes > 0 && !ExpertFiles::LayersOf(config, spec).empty()) {
    CARAVAN_ASSIGN_OR_RETURN(
        experts,
        ExpertStore::Create(config, spec, source, options.expert_budget_bytes, options.experts));
  }
  KvCache::Options kv_options;
  kv_options.num_layers = spec.num_kv_layers();
  kv_options.width = config.Mla().kv_width();
  kv_options.dtype = options.kv_dtype;
  kv_options.block_tokens = kKvBlockTokens;
  kv_options.budget_bytes = options.kv_budget_bytes;
  kv_options.disk_bytes = options.kv_disk_bytes;
  kv_options.disk_directory = options.kv_disk_directory;
  if (experts != nullptr) kv_options.disk_reads = &experts->queue();
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> kv_cache, KvCache::Create(kv_options));
  std::unique_ptr<HeatKeeper> heat;
  if (experts != nullptr && options.expert_heat.has_value()) {
    heat = MakeHeatKeeper(options, source, experts->cache().shape());
    heat->Load(experts->cache());
  }
  const int64_t warm_bytes = experts == nullptr ? 0 : experts->warm_bytes();
  CARAVAN_ASSIGN_OR_RETURN(
      std::unique_ptr<StageWeights> weights,
      StageWeights::Load(
          config, spec, source,
          [&](int64_t done, int64_t total) { return progress(done, total + warm_bytes); },
          experts == nullptr ? StageWeights::Experts::kLoad : StageWeights::Experts::kLeave));
  if (warm_bytes > 0) {
    const int64_t loaded = weights->num_bytes();
    CARAVAN_RETURN_IF_ERROR(experts->Warm(
        [&](int64_t done, int64_t total) { return progress(loaded + done, loaded + total); }));
  }
  return std::unique_ptr<Stage>(new Stage(config, spec, std::move(backend), std::move(weights),
                                          std::move(experts), std::move(heat), std::move(kv_cache),
                                          options));
}

Stage::Stage(const ModelConfig& config, const StageSpec& spec, std::unique_ptr<Backend> backend,
             std::unique_ptr<StageWeights> weights, std::unique_ptr<ExpertStore> experts,
             std::unique_ptr<HeatKeeper> heat, std::unique_ptr<KvCache> kv_cache,
             const Options& options)
    : config_(config),
      spec_(spec),
      options_(options),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      experts_(std::move(experts)),
      heat_(std::move(heat)),
      kv_cache_(std::move(kv_cache)),
      layer_runner_(config_, *backend_, experts_.get(), options_.routing.get(),
                    options.max_step_tokens),
      hidden_(static_cast<size_t>(options.max_step_tokens * config.hidden_size)) {
  if (spec_.has_head) head_.emplace(config_, *weights_, *backend_);
  if (spec_.drafts) {
    drafter_.emplace(config_, *weights_, *backend_, layer_runner_, *head_, options.max_step_tokens);
  }
}

Stage::~Stage() { Finish(); }

void Stage::AfterStep() {
  if (heat_ != nullptr) heat_->AfterStep(experts_->cache(), experts_->step());
}

void Stage::Finish() {
  if (heat_ != nullptr) heat_->Finish(experts_->cache(), experts_->step());
  options_.routing.reset();
}

v1::Step Stage::Run(v1::Step step) {
  if (step.has_error()) return step;
  const absl::Status status = Apply(step);
  if (!status.ok()) {
    step.clear_activations();
    step.clear_results();
    step.mutable_error()->set_code(static_cast<int32_t>(status.code()));
    step.mutable_error()->set_message(
        absl::StrCat(options_.name, ", ", DescribeStage(spec_), ": ", status.message()));
  }
  return step;
}

absl::Status Stage::Apply(v1::Step& step) {
  CARAVAN_RETURN_IF_ERROR(Check(step));
  for (const v1::BlockCopy& copy : step.block_copies()) {
    CARAVAN_RETURN_IF_ERROR(kv_cache_->CopyBlock(copy.from(), copy.to()));
  }
  if (step.slices().empty()) return absl::OkStatus();
  TakeInput(step);
  CARAVAN_RETURN_IF_ERROR(RunLayers(step));
  if (head_.has_value()) {
    step.clear_activations();
    head_->Run(hidden_.data(), step);
    if (drafter_.has_value()) {
      CARAVAN_RETURN_IF_ERROR(drafter_->Run(hidden_.data(), *kv_cache_, spec_.num_layers(), step));
    }
  } else {
    step.set_activations(hidden_.data(), HiddenBytes(CountRows(step)));
  }
  return absl::OkStatus();
}

absl::Status Stage::Check(const v1::Step& step) const {
  StepLimits limits;
  limits.max_rows = options_.max_step_tokens;
  limits.vocab_size = config_.vocab_size;
  limits.max_positions = config_.max_position_embeddings;
  limits.kv_blocks = kv_cache_->num_blocks();
  limits.block_tokens = kv_cache_->block_tokens();
  CARAVAN_RETURN_IF_ERROR(CheckStep(step, limits));
  if (spec_.has_head && !spec_.drafts) {
    for (const v1::SequenceSlice& slice : step.slices()) {
      if (!slice.draft()) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "sequence ", slice.sequence_id(), ": asks for drafts, but no MTP layer is here"));
    }
  }
  const int64_t num_rows = CountRows(step);
  const size_t expected = spec_.embeds ? 0 : HiddenBytes(num_rows);
  if (step.activations().size() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("activations of ", step.activations().size(),
                                                 " bytes for ", num_rows, " tokens; expected ",
                                                 expected));
}

void Stage::TakeInput(const v1::Step& step) {
  if (!spec_.embeds) {
    std::memcpy(hidden_.data(), step.activations().data(), step.activations().size());
    return;
  }
  std::vector<int32_t> ids;
  for (const v1::SequenceSlice& slice : step.slices()) {
    ids.insert(ids.end(), slice.token_ids().begin(), slice.token_ids().end());
  }
  backend_->Embed(weights_->embedding, ids, hidden_.data());
}

absl::Status Stage::RunLayers(const v1::Step& step) {
  SequenceTable table;
  for (const v1::SequenceSlice& slice : step.slices()) table.Add(slice, slice.token_ids_size());
  kv_cache_->BeginStep(table.BlockUses(kv_cache_->block_tokens()));
  for (int layer = 0; layer < spec_.num_layers(); ++layer) {
    const LayerWeights* const weights = &weights_->layers[static_cast<size_t>(layer)];
    const bool is_last = layer + 1 == spec_.num_layers();
    CARAVAN_RETURN_IF_ERROR(kv_cache_->LoadLayer(layer, is_last ? -1 : layer + 1));
    CARAVAN_RETURN_IF_ERROR(layer_runner_.Run(*weights, table.ForLayer(*kv_cache_, layer),
                                              kv_cache_->layout(), table.num_rows(), hidden_.data(),
                                              is_last ? nullptr : weights + 1));
    CARAVAN_RETURN_IF_ERROR(kv_cache_->StoreLayer(layer));
  }
  return absl::OkStatus();
}

size_t Stage::HiddenBytes(int64_t num_rows) const {
  return static_cast<size_t>(num_rows * config_.hidden_size) * sizeof(float);
}

}  // namespace caravan
