#include "worker/stage.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/kv_block_name.h"
#include "kernels/kv_rows.h"
#include "model/pack/pack_manifest.h"
#include "model/step_memory.h"
#include "worker/experts/expert_cost_file.h"
#include "worker/step_check.h"

namespace caravan {
namespace {

// All layers of a stage, as a RepeatKey's part: others are the layers' own numbers.
constexpr int64_t kAllLayers = -1;

/// Where it is kept what a stage learned about its experts. REQUIRES: it is (options.expert_heat).
std::string ExpertDirectory(const Stage::Options& options, const TensorSource& source,
                            const ExpertCache::Shape& shape) {
  if (!options.expert_heat->empty()) return *options.expert_heat;
  return std::filesystem::path(source.FindExperts(shape.first_layer)->path).parent_path();
}

absl::Status SetCosts(const Stage::Options& options, const TensorSource& source,
                      CardExperts& experts) {
  const std::string measured_for = experts.CostsDependOn();
  std::string path;
  if (options.expert_heat.has_value()) {
    path = ExpertCostPath(ExpertDirectory(options, source, experts.cache().shape()), measured_for);
  }
  CARAVAN_ASSIGN_OR_RETURN(ExpertCosts costs, KeptExpertCosts(path, measured_for, [&experts] {
                             return experts.MeasureCosts();
                           }));
  experts.SetCosts(std::move(costs));
  return absl::OkStatus();
}

std::unique_ptr<HeatKeeper> MakeHeatKeeper(const Stage::Options& options,
                                           const TensorSource& source,
                                           const ExpertCache::Shape& shape) {
  HeatKeeper::Options heat;
  heat.path = HeatKeeper::PathOf(ExpertDirectory(options, source, shape), shape);
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
  if (options.kv_disk_bytes > 0 && !backend->memory().is_host()) {
    return absl::InvalidArgumentError("--kv-disk: a card's KV cache is in its memory only");
  }
  HeldExperts held;
  if (options.held_experts != nullptr) held = std::move(*options.held_experts);
  if (held.model_fingerprint != options.model_fingerprint) held = HeldExperts();
  const UseHistory uses = std::move(held.uses);
  const UseHistory card_uses = std::move(held.card_uses).value_or(uses);
  std::unique_ptr<ExpertStore> experts;
  // After all that is made below.
  const absl::Cleanup give_back = [&] {
    if (experts == nullptr || options.held_experts == nullptr) return;
    *options.held_experts = ExpertStore::Release(std::move(experts));
    options.held_experts->model_fingerprint = options.model_fingerprint;
  };
  std::unique_ptr<HeatKeeper> heat;
  if (options.expert_budget_bytes > 0 && !ExpertFiles::LayersOf(config, spec).empty()) {
    CARAVAN_ASSIGN_OR_RETURN(experts,
                             ExpertStore::Create(config, spec, source, options.expert_budget_bytes,
                                                 options.experts, std::move(held)));
    if (options.expert_heat.has_value()) {
      heat = MakeHeatKeeper(options, source, experts->cache().shape());
      heat->Load(experts->cache());
    }
    // Newer than what the file has of these layers.
    experts->cache().Continue(uses);
  } else {
    held = HeldExperts();  // makes room
  }
  KvCache::Options kv_options;
  kv_options.num_layers = spec.num_kv_layers();
  kv_options.width = config.Mla().kv_width();
  kv_options.dtype = options.kv_dtype;
  kv_options.block_tokens = kKvBlockTokens;
  kv_options.budget_bytes = options.kv_budget_bytes;
  kv_options.memory = &backend->memory();
  kv_options.disk_bytes = options.kv_disk_bytes;
  kv_options.disk_directory = options.kv_disk_directory;
  if (experts != nullptr) kv_options.disk_reads = &experts->queue();
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> kv_cache, KvCache::Create(kv_options));
  std::unique_ptr<CardExperts> card_experts;
  if (experts != nullptr && !backend->memory().is_host()) {
    CARAVAN_CHECK(options.card_expert_bytes > 0 && options.cpu != nullptr);
    CardExperts::Options card_options;
    card_options.budget_bytes = options.card_expert_bytes;
    card_options.policy = options.experts.policy;
    card_options.max_rows = options.max_step_tokens;
    CARAVAN_ASSIGN_OR_RETURN(
        card_experts, CardExperts::Create(config, *experts, *backend, *options.cpu, card_options));
    CARAVAN_RETURN_IF_ERROR(SetCosts(options, source, *card_experts));
    if (heat != nullptr) heat->Load(card_experts->cache());
    card_experts->cache().Continue(card_uses);
  }
  // What is loaded, one after another.
  const int64_t on_card_bytes = card_experts == nullptr ? 0 : card_experts->warm_bytes();
  const int64_t warm_bytes = experts == nullptr ? 0 : experts->warm_bytes();
  int64_t loaded = 0;
  CARAVAN_ASSIGN_OR_RETURN(
      std::unique_ptr<StageWeights> weights,
      StageWeights::Load(
          config, spec, source,
          [&](int64_t done, int64_t total) {
            loaded = total;
            return progress(done, total + on_card_bytes + warm_bytes);
          },
          backend->memory(),
          experts == nullptr ? StageWeights::Experts::kLoad : StageWeights::Experts::kLeave,
          options.held.get()));
  const int64_t total = loaded + on_card_bytes + warm_bytes;
  if (card_experts != nullptr) {
    CARAVAN_RETURN_IF_ERROR(
        card_experts->Warm([&](int64_t done, int64_t) { return progress(loaded + done, total); }));
  }
  if (experts != nullptr) {
    CARAVAN_RETURN_IF_ERROR(experts->Warm(
        [&](int64_t done, int64_t) { return progress(loaded + on_card_bytes + done, total); }));
  }
  if (warm_bytes > 0) progress(total, total);
  auto stage = absl::WrapUnique(new Stage(config, spec, std::move(backend), std::move(weights),
                                          std::move(experts), std::move(card_experts),
                                          std::move(heat), std::move(kv_cache), options));
  absl::Status made = stage->TakeMemory();
  if (made.ok()) {
    stage->OpenArchive(options.kv_archive);
    if (!stage->backend_->memory().is_host()) {
      made = stage->Rehearse([&] { return progress(total, total); });
    }
  }
  if (made.ok()) return stage;
  // They are the stage's by now.
  if (options.held_experts != nullptr) *options.held_experts = stage->ReleaseExperts();
  return made;
}

Stage::Stage(const ModelConfig& config, const StageSpec& spec, std::unique_ptr<Backend> backend,
             std::unique_ptr<StageWeights> weights, std::unique_ptr<ExpertStore> experts,
             std::unique_ptr<CardExperts> card_experts, std::unique_ptr<HeatKeeper> heat,
             std::unique_ptr<KvCache> kv_cache, const Options& options)
    : config_(config),
      spec_(spec),
      options_(options),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      experts_(std::move(experts)),
      card_experts_(std::move(card_experts)),
      heat_(std::move(heat)),
      kv_cache_(std::move(kv_cache)) {
  options_.held.reset();  // the weights share what they took
  options_.held_experts.reset();
}

absl::Status Stage::TakeMemory() {
  Memory& memory = backend_->memory();
  const int64_t max_rows = options_.max_step_tokens;
  CARAVAN_ASSIGN_OR_RETURN(
      slots_, HiddenSlots::Create(memory, options_.hidden_slots, HiddenBytes(max_rows)));
  if (spec_.embeds && !memory.is_host()) {
    CARAVAN_ASSIGN_OR_RETURN(ids_, AllocateValues<int32_t>(memory, max_rows));
  }
  CARAVAN_ASSIGN_OR_RETURN(
      layer_runner_, LayerRunner::Create(config_, *backend_, experts_.get(), card_experts_.get(),
                                         options_.routing.get(), max_rows));
  if (spec_.has_head) {
    CARAVAN_ASSIGN_OR_RETURN(head_, OutputHead::Create(config_, *weights_, *backend_));
  }
  if (spec_.drafts) {
    CARAVAN_ASSIGN_OR_RETURN(drafter_, MtpDrafter::Create(config_, *weights_, *backend_,
                                                          *layer_runner_, *head_, max_rows));
  }
  return absl::OkStatus();
}

Stage::~Stage() { Finish(); }

void Stage::AfterStep() {
  if (heat_ == nullptr) return;
  // The tier that sees all uses knows what is worth most.
  if (card_experts_ != nullptr) {
    heat_->AfterStep(card_experts_->cache(), card_experts_->step());
  } else {
    heat_->AfterStep(experts_->cache(), experts_->step());
  }
}

void Stage::Finish() {
  if (heat_ != nullptr && card_experts_ != nullptr) {
    heat_->Finish(card_experts_->cache(), card_experts_->step());
  } else if (heat_ != nullptr && experts_ != nullptr) {
    heat_->Finish(experts_->cache(), experts_->step());
  }
  options_.routing.reset();
}

HeldExperts Stage::ReleaseExperts() {
  Finish();
  if (experts_ == nullptr) return {};
  // All that uses the store or its queue goes before it.
  drafter_.reset();
  layer_runner_.reset();
  std::optional<UseHistory> card_uses;
  if (card_experts_ != nullptr) {
    card_uses = card_experts_->cache().History(card_experts_->step());
    card_experts_.reset();
  }
  kv_cache_.reset();
  HeldExperts held = ExpertStore::Release(std::move(experts_));
  held.card_uses = std::move(card_uses);
  held.model_fingerprint = options_.model_fingerprint;
  return held;
}

v1::Step Stage::Run(v1::Step step) { return Run(HopStep{std::move(step), *slots_->Take()}).step; }

HopStep Stage::Run(HopStep in) {
  v1::Step& step = in.step;
  if (step.has_error()) return {std::move(step), Array()};
  hidden_ = std::move(in.hidden);
  absl::Status status = Apply(step);
  if (options_.hidden_slots > 1) {
    // Copies out wait for all that was asked before, of which the slot must be free.
    const absl::Status done = backend_->memory().CopyOut(hidden_.data(), 0, nullptr);
    if (status.ok()) status = done;
  }
  Array hidden = std::exchange(hidden_, Array());
  if (!status.ok()) {
    card_is_lost_ |= status.code() == absl::StatusCode::kInternal && !backend_->memory().is_host();
    step.clear_activations();
    step.clear_activations_by_nccl();
    step.clear_results();
    step.mutable_error()->set_code(static_cast<int32_t>(status.code()));
    step.mutable_error()->set_message(
        absl::StrCat(options_.name, ", ", DescribeStage(spec_), ": ", status.message()));
  }
  if (!step.activations_by_nccl()) hidden = Array();
  return {std::move(step), std::move(hidden)};
}

absl::Status Stage::Apply(v1::Step& step) {
  CARAVAN_RETURN_IF_ERROR(Check(step));
  CARAVAN_RETURN_IF_ERROR(MoveBlocks(step));
  if (step.slices().empty()) return absl::OkStatus();
  CARAVAN_RETURN_IF_ERROR(TakeInput(step));
  CARAVAN_RETURN_IF_ERROR(RunLayers(step));
  step.set_activations_by_nccl(options_.leaves_hidden);
  if (options_.leaves_hidden) {
    step.clear_activations();
    return absl::OkStatus();
  }
  if (head_ == nullptr) {
    std::string& activations = *step.mutable_activations();
    activations.resize(static_cast<size_t>(HiddenBytes(CountRows(step))));
    return backend_->memory().CopyOut(hidden_.data(), std::ssize(activations), activations.data());
  }
  step.clear_activations();
  CARAVAN_RETURN_IF_ERROR(head_->Run(hidden_.floats(), step));
  if (drafter_ == nullptr) return absl::OkStatus();
  return drafter_->Run(hidden_.floats(), *kv_cache_, spec_.num_layers(), step);
}

void Stage::OpenArchive(KvArchive::Place place) {
  kv_archive_.reset();  // which writes what waits
  KvArchive::Options archive;
  archive.place = std::move(place);
  if (archive.place.store == nullptr) return;
  archive.format = {options_.kv_dtype, kKvBlockTokens, config_.Mla().kv_width()};
  archive.layers = {spec_.first_layer, spec_.num_kv_layers()};
  CARAVAN_CHECK(archive.format.layer_bytes() == kv_cache_->layer_bytes());
  absl::StatusOr<std::unique_ptr<KvArchive>> opened = KvArchive::Open(archive);
  if (opened.ok()) {
    kv_archive_ = *std::move(opened);
  } else {
    LogWarning("no_kv_archive", {{"why", opened.status().message()}});
  }
}

void Stage::SetReplica(const KvArchive::Place& place) {
  if (kv_archive_ != nullptr) kv_archive_->SetReplica(place);
}

void Stage::StopFetching() {
  if (kv_archive_ != nullptr) kv_archive_->StopFetching();
}

absl::Status Stage::MoveBlocks(const v1::Step& step) {
  for (const v1::ArchivedBlock& kept : step.kept_blocks()) {
    if (kv_archive_ == nullptr) break;
    CARAVAN_RETURN_IF_ERROR(kv_archive_->Keep(
        *KvBlockNameFromWire(kept.name()), [&](int layer, absl::Span<std::byte> to) {
          return kv_cache_->ReadLayer(kept.block(), layer, to);
        }));
  }
  std::vector<KvBlockName> restored_names;
  for (const v1::ArchivedBlock& restored : step.restored_blocks()) {
    restored_names.push_back(*KvBlockNameFromWire(restored.name()));
  }
  if (kv_archive_ != nullptr && !restored_names.empty()) kv_archive_->Fetch(restored_names);
  for (const v1::ArchivedBlock& restored : step.restored_blocks()) {
    if (kv_archive_ == nullptr) return absl::NotFoundError("no KV blocks are archived here");
    CARAVAN_RETURN_IF_ERROR(kv_archive_->Restore(
        *KvBlockNameFromWire(restored.name()), [&](int layer, absl::Span<const std::byte> from) {
          return kv_cache_->WriteLayer(restored.block(), layer, from);
        }));
  }
  for (const v1::BlockCopy& copy : step.block_copies()) {
    CARAVAN_RETURN_IF_ERROR(kv_cache_->CopyBlock(copy.from(), copy.to()));
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
  const bool come_with_step = !spec_.embeds && !step.activations_by_nccl();
  const int64_t expected = come_with_step ? HiddenBytes(num_rows) : 0;
  if (std::ssize(step.activations()) == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("activations of ", step.activations().size(),
                                                 " bytes for ", num_rows, " tokens; expected ",
                                                 expected));
}

absl::Status Stage::TakeInput(const v1::Step& step) {
  if (step.activations_by_nccl()) return absl::OkStatus();
  if (!spec_.embeds) {
    return backend_->memory().CopyIn(step.activations().data(), std::ssize(step.activations()),
                                     hidden_.data());
  }
  std::vector<int32_t> ids;
  for (const v1::SequenceSlice& slice : step.slices()) {
    ids.insert(ids.end(), slice.token_ids().begin(), slice.token_ids().end());
  }
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const int32_t> placed,
                           InMemory(backend_->memory(), absl::MakeConstSpan(ids), ids_));
  backend_->Embed(weights_->embedding, placed, hidden_.floats());
  return absl::OkStatus();
}

absl::Status Stage::RunLayers(const v1::Step& step) {
  SequenceTable table;
  for (const v1::SequenceSlice& slice : step.slices()) table.Add(slice, slice.token_ids_size());
  if (layer_runner_->shows_choices()) return RunEachLayer(table);
  // Between layers there is nothing to decide.
  return backend_->Repeat({kAllLayers, table.num_rows(), hidden_.data()},
                          table.ForLayer(*kv_cache_, 0), [&] { return RunEachLayer(table); });
}

absl::Status Stage::RunEachLayer(SequenceTable& table) {
  kv_cache_->BeginStep(table.BlockUses(kv_cache_->block_tokens()));
  for (int layer = 0; layer < spec_.num_layers(); ++layer) {
    const LayerWeights* const weights = &weights_->layers[static_cast<size_t>(layer)];
    const bool is_last = layer + 1 == spec_.num_layers();
    CARAVAN_RETURN_IF_ERROR(kv_cache_->LoadLayer(layer, is_last ? -1 : layer + 1));
    const absl::Span<const SequenceRows> sequences = table.ForLayer(*kv_cache_, layer);
    if (is_rehearsal_ && layer_runner_->shows_choices()) {
      CARAVAN_RETURN_IF_ERROR(layer_runner_->Choose(*weights, sequences, kv_cache_->layout(),
                                                    table.num_rows(), hidden_.floats()));
    } else {
      CARAVAN_RETURN_IF_ERROR(layer_runner_->Run(*weights, sequences, kv_cache_->layout(),
                                                 table.num_rows(), hidden_.floats(),
                                                 is_last ? nullptr : weights + 1));
    }
    CARAVAN_RETURN_IF_ERROR(kv_cache_->StoreLayer(layer));
  }
  return absl::OkStatus();
}

absl::Status Stage::Rehearse(absl::FunctionRef<bool()> go_on) {
  // Each twice: the first time loads kernels, the second makes graphs (Backend::Repeat).
  constexpr int kTimes = 2;
  const int64_t most = options_.max_step_tokens;
  const int64_t shapes[] = {1, 2, 4, 8, most};
  is_rehearsal_ = true;
  int run = 0;
  for (const int64_t rows : shapes) {
    for (int i = 0; i < kTimes; ++i) {
      const absl::Duration start = SteadyClock().Now();
      v1::Step step = MadeUpStep(std::min(rows, most), /*one_sequence=*/rows == most);
      hidden_ = *slots_->Take();
      absl::Status status = Apply(step);
      // The slot is free when the card is done with it.
      const absl::Status done = backend_->memory().CopyOut(hidden_.data(), 0, nullptr);
      if (status.ok()) status = done;
      hidden_ = Array();
      CARAVAN_RETURN_IF_ERROR(status);
      LogInfo("dry_run", {{"run", ++run},
                          {"of", kTimes * std::ssize(shapes)},
                          {"tokens", CountRows(step)},
                          {"ms", absl::ToDoubleMilliseconds(SteadyClock().Now() - start)}});
      if (!go_on()) return absl::CancelledError("loading was stopped");
    }
  }
  is_rehearsal_ = false;
  return absl::OkStatus();
}

v1::Step Stage::MadeUpStep(int64_t num_rows, bool one_sequence) const {
  v1::Step step;
  const int64_t blocks = kv_cache_->num_blocks();
  const int64_t tokens = one_sequence ? std::min({num_rows, blocks * kv_cache_->block_tokens(),
                                                  int64_t{config_.max_position_embeddings}})
                                      : 1;
  const int64_t sequences = one_sequence ? 1 : std::min(num_rows, blocks);
  for (int64_t i = 0; i < sequences; ++i) {
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(static_cast<uint64_t>(i + 1));
    for (int64_t token = 0; token < tokens; ++token) slice.add_token_ids(0);
    for (int64_t j = 0; j < CeilDiv(tokens, kv_cache_->block_tokens()); ++j) {
      slice.add_kv_blocks(static_cast<uint32_t>(i + j));
    }
    slice.set_output(spec_.has_head ? v1::SLICE_OUTPUT_SAMPLE : v1::SLICE_OUTPUT_NONE);
    slice.set_draft(spec_.drafts && !layer_runner_->shows_choices());
  }
  if (!spec_.embeds) {
    step.mutable_activations()->resize(static_cast<size_t>(HiddenBytes(sequences * tokens)));
  }
  return step;
}

int64_t Stage::HiddenBytes(int64_t num_rows) const {
  return num_rows * config_.hidden_size * static_cast<int64_t>(sizeof(float));
}

absl::Status SplitExpertBudget(const ModelConfig& config, const StageSpec& spec, int64_t ram_bytes,
                               std::shared_ptr<Backend> cpu, Stage::Options& options) {
  // The CPU computes as many rows as the card does.
  const int64_t step_bytes =
      ComputeStepMemory(config, options.max_step_tokens).Of(spec, /*num_stages=*/1);
  if (ram_bytes <= step_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("--ram: the experts that the card has no room for get nothing: the process "
                     "leaves ",
                     FormatByteSize(std::max<int64_t>(ram_bytes, 0)),
                     ", and what the CPU computes of a step takes ", FormatByteSize(step_bytes)));
  }
  options.card_expert_bytes = options.expert_budget_bytes;
  options.expert_budget_bytes = ram_bytes - step_bytes;
  options.cpu = std::move(cpu);
  return absl::OkStatus();
}

}  // namespace caravan
