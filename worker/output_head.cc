#include "worker/output_head.h"

#include "absl/memory/memory.h"
#include "base/status_macros.h"
#include "model/sampler.h"
#include "model/scored_token.h"
#include "model/step_memory.h"

namespace caravan {
namespace {

/// The row after which the first token is sampled; those of drafts follow it.
int FirstSampledRow(const v1::SequenceSlice& slice) {
  return slice.token_ids_size() - 1 - static_cast<int>(slice.num_draft_tokens());
}

bool WantsLogits(const v1::SequenceSlice& slice, int row) {
  return slice.output() == v1::SLICE_OUTPUT_LOGITS || row < slice.scored_token_ids_size() ||
         (slice.output() == v1::SLICE_OUTPUT_SAMPLE && row >= FirstSampledRow(slice));
}

/// Whether to sample after `row`: all drafts up to its token were accepted.
bool IsSampled(const v1::SequenceSlice& slice, int row, const v1::SliceResult& so_far) {
  const int index = row - FirstSampledRow(slice);
  if (slice.output() != v1::SLICE_OUTPUT_SAMPLE || index != so_far.sampled_size()) return false;
  return index == 0 || so_far.sampled(index - 1).token_id() == slice.token_ids(row);
}

}  // namespace

absl::StatusOr<std::unique_ptr<OutputHead>> OutputHead::Create(const ModelConfig& config,
                                                               const StageWeights& weights,
                                                               Backend& backend) {
  auto head = absl::WrapUnique(new OutputHead(config, weights, backend));
  CARAVAN_ASSIGN_OR_RETURN(head->normed_,
                           AllocateValues<float>(backend.memory(), kHeadRows * config.hidden_size));
  CARAVAN_ASSIGN_OR_RETURN(head->logits_,
                           AllocateValues<float>(backend.memory(), kHeadRows * config.vocab_size));
  return head;
}

absl::Status OutputHead::Run(const float* hidden, v1::Step& step) {
  struct RowOfSlice {
    int slice;
    int row;
  };
  std::vector<RowOfSlice> wanted;
  std::vector<int64_t> rows;  // of the step
  int64_t first_row = 0;
  for (int i = 0; i < step.slices_size(); ++i) {
    const v1::SequenceSlice& slice = step.slices(i);
    step.add_results()->set_sequence_id(slice.sequence_id());
    for (int row = 0; row < slice.token_ids_size(); ++row) {
      if (!WantsLogits(slice, row)) continue;
      wanted.push_back({i, row});
      rows.push_back(first_row + row);
    }
    first_row += slice.token_ids_size();
  }
  return Project(hidden, rows, weights_.final_layernorm,
                 [&](size_t i, absl::Span<const float> logits) {
                   Answer(logits, step.slices(wanted[i].slice), wanted[i].row,
                          *step.mutable_results(wanted[i].slice));
                 });
}

absl::Status OutputHead::Project(const float* hidden, absl::Span<const int64_t> rows,
                                 const float* norm, TakeLogits take) {
  const size_t vocab_size = static_cast<size_t>(config_.vocab_size);
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(kHeadRows)) {
    const auto batch = rows.subspan(begin, kHeadRows);
    for (size_t i = 0; i < batch.size(); ++i) {
      backend_.RmsNorm(hidden + batch[i] * config_.hidden_size, 1, config_.hidden_size, norm,
                       static_cast<float>(config_.rms_norm_eps),
                       normed_.floats() + static_cast<int64_t>(i) * config_.hidden_size);
    }
    const auto num_rows = static_cast<int64_t>(batch.size());
    backend_.MatMul(weights_.lm_head, normed_.floats(), num_rows, logits_.floats());
    CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const float> logits,
                             OnHost(backend_.memory(), logits_.as<const float>(),
                                    num_rows * config_.vocab_size, host_logits_));
    for (size_t i = 0; i < batch.size(); ++i) {
      take(begin + i, logits.subspan(i * vocab_size, vocab_size));
    }
  }
  return absl::OkStatus();
}

void OutputHead::Answer(absl::Span<const float> logits, const v1::SequenceSlice& slice, int row,
                        v1::SliceResult& result) {
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) AppendLogits(logits, *result.mutable_logits());
  if (row < slice.scored_token_ids_size()) {
    *result.add_scored() =
        ToProto(ScoreToken(logits, static_cast<int32_t>(slice.scored_token_ids(row)),
                           static_cast<int>(slice.sampling().num_alternatives())));
  }
  if (IsSampled(slice, row, result)) {
    const int64_t position = int64_t{slice.first_position()} + row + 1;
    *result.add_sampled() =
        ToProto(SampleToken(logits, slice.sampling(), HistoryAfter(slice, result), position));
  }
}

void AppendLogits(absl::Span<const float> logits, std::string& bytes) {
  bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float));
}

v1::SamplingHistory HistoryAfter(const v1::SequenceSlice& slice, const v1::SliceResult& result) {
  v1::SamplingHistory history = slice.history();
  for (const v1::TokenScore& token : result.sampled()) {
    history.add_reply_token_ids(token.token_id());
  }
  return history;
}

}  // namespace caravan
