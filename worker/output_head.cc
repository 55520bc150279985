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

/// Of the token after the slice's row `row`.
int64_t PositionAfter(const v1::SequenceSlice& slice, int row) {
  return int64_t{slice.first_position()} + row + 1;
}

LogitQuestion QuestionOf(const v1::SequenceSlice& slice, int row) {
  LogitQuestion question;
  if (slice.output() == v1::SLICE_OUTPUT_SAMPLE && row >= FirstSampledRow(slice)) {
    question = QuestionFor(slice.sampling(), PositionAfter(slice, row));
  }
  if (row < slice.scored_token_ids_size()) {
    question.token_id = static_cast<int32_t>(slice.scored_token_ids(row));
  }
  return question;
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
  Memory& memory = backend.memory();
  auto head = absl::WrapUnique(new OutputHead(config, weights, backend));
  CARAVAN_ASSIGN_OR_RETURN(head->normed_,
                           AllocateValues<float>(memory, kHeadRows * config.hidden_size));
  CARAVAN_ASSIGN_OR_RETURN(head->logits_,
                           AllocateValues<float>(memory, kHeadRows * config.vocab_size));
  if (memory.is_host()) return head;
  CARAVAN_ASSIGN_OR_RETURN(head->questions_, AllocateValues<LogitQuestion>(memory, kHeadRows));
  CARAVAN_ASSIGN_OR_RETURN(head->summaries_, AllocateValues<LogitSummary>(memory, kHeadRows));
  head->host_summaries_.resize(kHeadRows);
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
  return Project(
      hidden, rows, weights_.final_layernorm,
      [&](size_t i) { return QuestionOf(step.slices(wanted[i].slice), wanted[i].row); },
      [&](size_t i, LogitRow& logits) {
        return Answer(logits, step.slices(wanted[i].slice), wanted[i].row,
                      *step.mutable_results(wanted[i].slice));
      });
}

absl::Status OutputHead::Project(const float* hidden, absl::Span<const int64_t> rows,
                                 const float* norm, AskOfRow ask, TakeRow take) {
  Memory& memory = backend_.memory();
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(kHeadRows)) {
    const auto batch = rows.subspan(begin, kHeadRows);
    for (size_t i = 0; i < batch.size(); ++i) {
      backend_.RmsNorm(hidden + batch[i] * config_.hidden_size, 1, config_.hidden_size, norm,
                       static_cast<float>(config_.rms_norm_eps),
                       normed_.floats() + static_cast<int64_t>(i) * config_.hidden_size);
    }
    const auto num_rows = static_cast<int64_t>(batch.size());
    backend_.MatMul(weights_.lm_head, normed_.floats(), num_rows, logits_.floats());
    if (!memory.is_host()) CARAVAN_RETURN_IF_ERROR(Summarize(begin, num_rows, ask));
    for (size_t i = 0; i < batch.size(); ++i) {
      LogitRow logits(memory, logits_.floats() + static_cast<int64_t>(i) * config_.vocab_size,
                      config_.vocab_size, memory.is_host() ? nullptr : &host_summaries_[i],
                      host_logits_);
      CARAVAN_RETURN_IF_ERROR(take(begin + i, logits));
    }
  }
  return absl::OkStatus();
}

absl::Status OutputHead::Summarize(size_t begin, int64_t num_rows, AskOfRow ask) {
  std::vector<LogitQuestion> questions;
  for (size_t i = 0; i < static_cast<size_t>(num_rows); ++i) questions.push_back(ask(begin + i));
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LogitQuestion> placed,
                           InMemory(backend_.memory(), absl::MakeConstSpan(questions), questions_));
  backend_.SummarizeLogits(logits_.floats(), num_rows, config_.vocab_size, placed.data(),
                           summaries_.as<LogitSummary>());
  return OnHost(backend_.memory(), summaries_.as<const LogitSummary>(), num_rows, host_summaries_)
      .status();
}

absl::Status OutputHead::Answer(LogitRow& logits, const v1::SequenceSlice& slice, int row,
                                v1::SliceResult& result) {
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
    CARAVAN_RETURN_IF_ERROR(AppendLogits(logits, *result.mutable_logits()));
  }
  if (row < slice.scored_token_ids_size()) {
    CARAVAN_ASSIGN_OR_RETURN(const ScoredToken scored,
                             logits.Score(static_cast<int32_t>(slice.scored_token_ids(row)),
                                          static_cast<int>(slice.sampling().num_alternatives())));
    *result.add_scored() = ToProto(scored);
  }
  if (IsSampled(slice, row, result)) {
    CARAVAN_ASSIGN_OR_RETURN(
        const ScoredToken sampled,
        logits.Sample(slice.sampling(), HistoryAfter(slice, result), PositionAfter(slice, row)));
    *result.add_sampled() = ToProto(sampled);
  }
  return absl::OkStatus();
}

absl::Status AppendLogits(LogitRow& logits, std::string& bytes) {
  CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const float> all, logits.All());
  bytes.append(reinterpret_cast<const char*>(all.data()), all.size() * sizeof(float));
  return absl::OkStatus();
}

v1::SamplingHistory HistoryAfter(const v1::SequenceSlice& slice, const v1::SliceResult& result) {
  v1::SamplingHistory history = slice.history();
  for (const v1::TokenScore& token : result.sampled()) {
    history.add_reply_token_ids(token.token_id());
  }
  return history;
}

}  // namespace caravan
