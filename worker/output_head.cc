#include "worker/output_head.h"

#include <algorithm>

#include "model/sampler.h"
#include "model/scored_token.h"

namespace caravan {
namespace {

// Rows whose logits are computed at once: a sequence wants one, so this bounds the memory of steps
// that ask for all (16 rows of R1's vocabulary are 8 MB).
constexpr size_t kHeadRows = 16;

bool Wants(const v1::SequenceSlice& slice, int row) {
  return slice.output() == v1::SLICE_OUTPUT_LOGITS || row < slice.scored_token_ids_size() ||
         (slice.output() == v1::SLICE_OUTPUT_SAMPLE && row + 1 == slice.token_ids_size());
}

}  // namespace

OutputHead::OutputHead(const ModelConfig& config, const StageWeights& weights, Backend& backend)
    : config_(config),
      weights_(weights),
      backend_(backend),
      normed_(kHeadRows * static_cast<size_t>(config.hidden_size)),
      logits_(kHeadRows * static_cast<size_t>(config.vocab_size)) {}

void OutputHead::Run(const float* hidden, v1::Step& step) {
  for (const v1::SequenceSlice& slice : step.slices()) {
    step.add_results()->set_sequence_id(slice.sequence_id());
  }
  const std::vector<WantedRow> wanted = RowsWantedOf(step);
  const size_t vocab_size = static_cast<size_t>(config_.vocab_size);
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const auto rows = absl::MakeConstSpan(wanted).subspan(begin, kHeadRows);
    Project(hidden, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      Answer(absl::MakeConstSpan(logits_).subspan(i * vocab_size, vocab_size),
             step.slices(rows[i].slice), rows[i].row_of_slice,
             *step.mutable_results(rows[i].slice));
    }
  }
}

std::vector<OutputHead::WantedRow> OutputHead::RowsWantedOf(const v1::Step& step) {
  std::vector<WantedRow> wanted;
  int64_t first_row = 0;
  for (int i = 0; i < step.slices_size(); ++i) {
    const v1::SequenceSlice& slice = step.slices(i);
    for (int row = 0; row < slice.token_ids_size(); ++row) {
      if (Wants(slice, row)) wanted.push_back({i, row, first_row + row});
    }
    first_row += slice.token_ids_size();
  }
  return wanted;
}

void OutputHead::Project(const float* hidden, absl::Span<const WantedRow> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    backend_.RmsNorm(hidden + rows[i].row * config_.hidden_size, 1, config_.hidden_size,
                     weights_.final_layernorm, static_cast<float>(config_.rms_norm_eps),
                     normed_.data() + static_cast<int64_t>(i) * config_.hidden_size);
  }
  backend_.MatMul(weights_.lm_head, normed_.data(), static_cast<int64_t>(rows.size()),
                  logits_.data());
}

void OutputHead::Answer(absl::Span<const float> logits, const v1::SequenceSlice& slice,
                        int row_of_slice, v1::SliceResult& result) {
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
    result.mutable_logits()->append(reinterpret_cast<const char*>(logits.data()),
                                    logits.size() * sizeof(float));
  }
  if (row_of_slice < slice.scored_token_ids_size()) {
    *result.add_scored() =
        ToProto(ScoreToken(logits, static_cast<int32_t>(slice.scored_token_ids(row_of_slice)),
                           static_cast<int>(slice.sampling().num_alternatives())));
  }
  if (slice.output() == v1::SLICE_OUTPUT_SAMPLE && row_of_slice + 1 == slice.token_ids_size()) {
    const int64_t position = int64_t{slice.first_position()} + slice.token_ids_size();
    *result.add_sampled() =
        ToProto(SampleToken(logits, slice.sampling(), slice.history(), position));
  }
}

}  // namespace caravan
