#include "worker/mtp_drafter.h"

#include "absl/memory/memory.h"
#include "base/status_macros.h"
#include "model/sampler.h"

namespace caravan {
namespace {

/// The tokens after the slice's rows, as far as they are known; none after the rows of drafts that
/// were refused.
std::vector<int32_t> NextTokens(const v1::SequenceSlice& slice, const v1::SliceResult& result) {
  std::vector<int32_t> next(slice.token_ids().begin() + 1, slice.token_ids().end());
  if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) {
    // The drafts that were accepted are the sampled tokens but the last.
    next.resize(next.size() - slice.num_draft_tokens());
    for (const v1::TokenScore& token : result.sampled()) {
      next.push_back(static_cast<int32_t>(token.token_id()));
    }
  } else if (slice.has_next_token_id()) {
    next.push_back(static_cast<int32_t>(slice.next_token_id()));
  }
  return next;
}

/// The sampled tokens stand behind the rows that were kept; the draft comes after them.
int64_t DraftPosition(const v1::SequenceSlice& slice, const v1::SliceResult& result) {
  return int64_t{slice.first_position()} + slice.token_ids_size() - slice.num_draft_tokens() +
         result.sampled_size();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MtpDrafter>> MtpDrafter::Create(const ModelConfig& config,
                                                               const StageWeights& weights,
                                                               Backend& backend,
                                                               LayerRunner& layer_runner,
                                                               OutputHead& head, int64_t max_rows) {
  Memory& memory = backend.memory();
  const int64_t count = max_rows * config.hidden_size;
  auto drafter = absl::WrapUnique(new MtpDrafter(config, weights, backend, layer_runner, head));
  if (!memory.is_host()) {
    CARAVAN_ASSIGN_OR_RETURN(drafter->ids_, AllocateValues<int32_t>(memory, max_rows));
  }
  CARAVAN_ASSIGN_OR_RETURN(drafter->embedded_, AllocateValues<float>(memory, count));
  CARAVAN_ASSIGN_OR_RETURN(drafter->joined_, AllocateValues<float>(memory, 2 * count));
  CARAVAN_ASSIGN_OR_RETURN(drafter->hidden_, AllocateValues<float>(memory, count));
  return drafter;
}

absl::Status MtpDrafter::Run(const float* hidden, KvCache& kv_cache, int kv_layer, v1::Step& step) {
  SequenceTable table;
  std::vector<int64_t> rows;      // of `hidden`
  std::vector<int32_t> next_ids;  // the token after each
  std::vector<int64_t> wanted;    // of hidden_: whose logits are wanted, and the slice of each
  std::vector<int> slice_of_wanted;
  int64_t first_row = 0;
  for (int i = 0; i < step.slices_size(); ++i) {
    const v1::SequenceSlice& slice = step.slices(i);
    const std::vector<int32_t> next =
        slice.draft() ? NextTokens(slice, step.results(i)) : std::vector<int32_t>();
    const int64_t num_rows = static_cast<int64_t>(next.size());
    if (num_rows > 0) table.Add(slice, num_rows);
    for (int64_t row = 0; row < num_rows; ++row) {
      if (slice.output() == v1::SLICE_OUTPUT_LOGITS ||
          (slice.output() == v1::SLICE_OUTPUT_SAMPLE && row + 1 == num_rows)) {
        wanted.push_back(static_cast<int64_t>(rows.size()));
        slice_of_wanted.push_back(i);
      }
      rows.push_back(first_row + row);
    }
    next_ids.insert(next_ids.end(), next.begin(), next.end());
    first_row += slice.token_ids_size();
  }
  if (rows.empty()) return absl::OkStatus();
  CARAVAN_RETURN_IF_ERROR(TakeInput(hidden, rows, next_ids));
  kv_cache.BeginStep(table.BlockUses(kv_cache.block_tokens()));
  CARAVAN_RETURN_IF_ERROR(kv_cache.LoadLayer(kv_layer, -1));
  CARAVAN_RETURN_IF_ERROR(layer_runner_.Run(weights_.mtp->layer, table.ForLayer(kv_cache, kv_layer),
                                            kv_cache.layout(), table.num_rows(), hidden_.floats()));
  CARAVAN_RETURN_IF_ERROR(kv_cache.StoreLayer(kv_layer));
  return head_.Project(
      hidden_.floats(), wanted, weights_.mtp->head_norm,
      [&](size_t i) {
        const v1::SequenceSlice& slice = step.slices(slice_of_wanted[i]);
        return QuestionFor(slice.sampling(),
                           DraftPosition(slice, step.results(slice_of_wanted[i])));
      },
      [&](size_t i, LogitRow& logits) {
        return Answer(logits, step.slices(slice_of_wanted[i]),
                      *step.mutable_results(slice_of_wanted[i]));
      });
}

absl::Status MtpDrafter::TakeInput(const float* hidden, absl::Span<const int64_t> rows,
                                   absl::Span<const int32_t> next_ids) {
  const int64_t width = config_.hidden_size;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const MtpWeights& mtp = *weights_.mtp;
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const int32_t> ids,
                           InMemory(backend_.memory(), next_ids, ids_));
  backend_.Embed(weights_.embedding, ids, embedded_.floats());
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i);
    float* const joined = joined_.floats() + row * 2 * width;
    backend_.RmsNorm(embedded_.floats() + row * width, 1, width, mtp.enorm, eps, joined);
    backend_.RmsNorm(hidden + rows[i] * width, 1, width, weights_.final_layernorm, eps,
                     joined + width);
    backend_.RmsNorm(joined + width, 1, width, mtp.hnorm, eps, joined + width);
  }
  backend_.MatMul(mtp.eh_proj, joined_.floats(), static_cast<int64_t>(rows.size()),
                  hidden_.floats());
  return absl::OkStatus();
}

absl::Status MtpDrafter::Answer(LogitRow& logits, const v1::SequenceSlice& slice,
                                v1::SliceResult& result) {
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
    return AppendLogits(logits, *result.mutable_mtp_logits());
  }
  // The draft is drawn as the token itself will be, with the same random number: so they agree most
  // of the time, where the likeliest token would only as often as it is drawn.
  CARAVAN_ASSIGN_OR_RETURN(
      const int32_t draft,
      logits.Draw(slice.sampling(), HistoryAfter(slice, result), DraftPosition(slice, result)));
  result.add_draft_token_ids(static_cast<uint32_t>(draft));
  return absl::OkStatus();
}

}  // namespace caravan
