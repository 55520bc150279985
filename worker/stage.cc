#include "worker/stage.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "model/sampler.h"

namespace caravan {
namespace {

// Rows whose logits are computed at once: a sequence wants one, so this bounds the memory of steps
// that ask for all (16 rows of R1's vocabulary are 8 MB).
constexpr size_t kHeadRows = 16;

int64_t CountRows(const v1::Step& step) {
  int64_t rows = 0;
  for (const v1::SequenceSlice& slice : step.slices()) rows += slice.token_ids_size();
  return rows;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(const ModelConfig& config,
                                                     const StageSpec& spec,
                                                     const TensorSource& source,
                                                     std::unique_ptr<Backend> backend,
                                                     const Options& options,
                                                     const StageWeights::Progress& progress) {
  if (spec.first_layer < 0 || spec.first_layer >= spec.end_layer ||
      spec.end_layer > config.num_hidden_layers || options.max_step_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("no such stage: ", DescribeStage(spec), " of ",
                                                   config.num_hidden_layers, ", steps of ",
                                                   options.max_step_tokens, " tokens"));
  }
  KvCache::Options kv_options;
  kv_options.num_layers = spec.num_layers();
  kv_options.width = config.Mla().kv_width();
  kv_options.block_tokens = kKvBlockTokens;
  kv_options.budget_bytes = options.kv_budget_bytes;
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> kv_cache, KvCache::Create(kv_options));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<StageWeights> weights,
                           StageWeights::Load(config, spec, source, progress));
  return std::unique_ptr<Stage>(new Stage(config, spec, std::move(backend), std::move(weights),
                                          std::move(kv_cache), options));
}

Stage::Stage(const ModelConfig& config, const StageSpec& spec, std::unique_ptr<Backend> backend,
             std::unique_ptr<StageWeights> weights, std::unique_ptr<KvCache> kv_cache,
             const Options& options)
    : config_(config),
      spec_(spec),
      options_(options),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      kv_cache_(std::move(kv_cache)),
      layer_runner_(config_, *backend_, options.max_step_tokens),
      hidden_(static_cast<size_t>(options.max_step_tokens * config.hidden_size)) {
  if (spec_.has_head) {
    normed_.resize(kHeadRows * static_cast<size_t>(config_.hidden_size));
    logits_.resize(kHeadRows * static_cast<size_t>(config_.vocab_size));
  }
}

v1::Step Stage::Run(v1::Step step) {
  for (const uint64_t id : step.freed_sequence_ids()) kv_cache_->Free(id);
  if (step.has_error() || step.slices().empty()) return step;
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
  const int64_t num_rows = CountRows(step);
  if (num_rows > options_.max_step_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("a step of ", num_rows, " tokens; at most ",
                                                   options_.max_step_tokens, " fit"));
  }
  CARAVAN_RETURN_IF_ERROR(TakeInput(step, num_rows));
  absl::flat_hash_set<uint64_t> seen;
  for (const v1::SequenceSlice& slice : step.slices()) {
    if (slice.token_ids().empty() || !seen.insert(slice.sequence_id()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence ", slice.sequence_id(), " has no tokens, or two slices"));
    }
    CARAVAN_RETURN_IF_ERROR(
        kv_cache_->Append(slice.sequence_id(), slice.first_position(), slice.token_ids_size()));
  }
  RunLayers(step, num_rows);
  if (spec_.has_head) {
    Finish(step);
  } else {
    step.set_activations(hidden_.data(),
                         static_cast<size_t>(num_rows * config_.hidden_size) * sizeof(float));
  }
  return absl::OkStatus();
}

absl::Status Stage::TakeInput(const v1::Step& step, int64_t num_rows) {
  const size_t hidden_bytes = static_cast<size_t>(num_rows * config_.hidden_size) * sizeof(float);
  if (!spec_.embeds) {
    if (step.activations().size() != hidden_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("activations of ", step.activations().size(),
                                                     " bytes for ", num_rows, " tokens; expected ",
                                                     hidden_bytes));
    }
    std::memcpy(hidden_.data(), step.activations().data(), hidden_bytes);
    return absl::OkStatus();
  }
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(num_rows));
  for (const v1::SequenceSlice& slice : step.slices()) {
    for (const uint32_t id : slice.token_ids()) {
      if (id >= config_.vocab_size) {
        return absl::InvalidArgumentError(absl::StrCat("sequence ", slice.sequence_id(), ": token ",
                                                       id, " is outside the vocabulary of ",
                                                       config_.vocab_size));
      }
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  backend_->Embed(weights_->embedding, ids, hidden_.data());
  return absl::OkStatus();
}

void Stage::RunLayers(const v1::Step& step, int64_t num_rows) {
  std::vector<SequenceRows> sequences(static_cast<size_t>(step.slices_size()));
  std::vector<float*> blocks;
  std::vector<size_t> first_block;
  for (int layer = 0; layer < spec_.num_layers(); ++layer) {
    blocks.clear();
    first_block.clear();
    for (const v1::SequenceSlice& slice : step.slices()) {
      first_block.push_back(blocks.size());
      kv_cache_->AppendLayerBlocks(slice.sequence_id(), layer, blocks);
    }
    first_block.push_back(blocks.size());
    int64_t row = 0;
    for (int i = 0; i < step.slices_size(); ++i) {
      const v1::SequenceSlice& slice = step.slices(i);
      const size_t index = static_cast<size_t>(i);
      sequences[index] =
          SequenceRows{row, slice.token_ids_size(), slice.first_position(),
                       absl::MakeConstSpan(blocks).subspan(
                           first_block[index], first_block[index + 1] - first_block[index])};
      row += slice.token_ids_size();
    }
    layer_runner_.Run(weights_->layers[static_cast<size_t>(layer)], sequences,
                      kv_cache_->block_tokens(), num_rows, hidden_.data());
  }
}

void Stage::Finish(v1::Step& step) {
  step.clear_activations();
  // The rows whose logits somebody wants, and the slice that each belongs to.
  struct WantedRow {
    int slice;
    int64_t row;
    int64_t position;
  };
  std::vector<WantedRow> wanted;
  int64_t first_row = 0;
  for (int i = 0; i < step.slices_size(); ++i) {
    const v1::SequenceSlice& slice = step.slices(i);
    step.add_results()->set_sequence_id(slice.sequence_id());
    const int64_t num_rows = slice.token_ids_size();
    int64_t first_wanted = num_rows;
    if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) first_wanted = num_rows - 1;
    if (slice.output() == v1::SLICE_OUTPUT_LOGITS) first_wanted = 0;
    for (int64_t row = first_wanted; row < num_rows; ++row) {
      wanted.push_back({i, first_row + row, slice.first_position() + row});
    }
    first_row += num_rows;
  }
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const size_t end = std::min(wanted.size(), begin + kHeadRows);
    for (size_t i = begin; i < end; ++i) {
      backend_->RmsNorm(hidden_.data() + wanted[i].row * config_.hidden_size, 1,
                        config_.hidden_size, weights_->final_layernorm,
                        static_cast<float>(config_.rms_norm_eps),
                        normed_.data() + static_cast<int64_t>(i - begin) * config_.hidden_size);
    }
    backend_->MatMul(weights_->lm_head, normed_.data(), static_cast<int64_t>(end - begin),
                     logits_.data());
    for (size_t i = begin; i < end; ++i) {
      const size_t vocab_size = static_cast<size_t>(config_.vocab_size);
      const auto logits =
          absl::MakeConstSpan(logits_).subspan((i - begin) * vocab_size, vocab_size);
      const v1::SequenceSlice& slice = step.slices(wanted[i].slice);
      v1::SliceResult& result = *step.mutable_results(wanted[i].slice);
      if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
        result.mutable_logits()->append(reinterpret_cast<const char*>(logits.data()),
                                        logits.size() * sizeof(float));
        continue;
      }
      const ScoredToken token = SampleToken(logits, slice.sampling(), wanted[i].position + 1);
      result.set_token_id(static_cast<uint32_t>(token.token_id));
      result.set_log_probability(token.log_probability);
    }
  }
}

}  // namespace caravan
