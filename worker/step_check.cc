#include "worker/step_check.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cluster/kv_block_name.h"
#include "model/sampler.h"

namespace caravan {
namespace {

using TokenIds = google::protobuf::RepeatedField<uint32_t>;

absl::Status CheckTokenIds(const TokenIds& ids, int64_t vocab_size) {
  for (const uint32_t id : ids) {
    if (id < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token ", id, " is outside the vocabulary of ", vocab_size));
  }
  return absl::OkStatus();
}

/// The slice by itself.
absl::Status CheckSlice(const v1::SequenceSlice& slice, const StepLimits& limits) {
  if (slice.token_ids().empty()) return absl::InvalidArgumentError("has a slice without tokens");
  if (slice.output() == v1::SLICE_OUTPUT_UNSPECIFIED || !v1::SliceOutput_IsValid(slice.output())) {
    return absl::InvalidArgumentError(
        absl::StrCat("asks for output ", static_cast<int>(slice.output()), ", which is none"));
  }
  for (const TokenIds* ids :
       {&slice.token_ids(), &slice.scored_token_ids(), &slice.history().prompt_token_ids(),
        &slice.history().reply_token_ids()}) {
    CARAVAN_RETURN_IF_ERROR(CheckTokenIds(*ids, limits.vocab_size));
  }
  if (slice.next_token_id() >= limits.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", slice.next_token_id(), " is outside the vocabulary of ", limits.vocab_size));
  }
  const uint32_t num_drafts = slice.num_draft_tokens();
  if (num_drafts > 0 && (slice.output() != v1::SLICE_OUTPUT_SAMPLE ||
                         num_drafts >= static_cast<uint32_t>(slice.token_ids_size()))) {
    return absl::InvalidArgumentError(absl::StrCat("has ", num_drafts, " drafts among ",
                                                   slice.token_ids_size(), " tokens, output ",
                                                   v1::SliceOutput_Name(slice.output())));
  }
  if (slice.scored_token_ids_size() > slice.token_ids_size()) {
    return absl::InvalidArgumentError(absl::StrCat("asks for ", slice.scored_token_ids_size(),
                                                   " scores after ", slice.token_ids_size(),
                                                   " tokens"));
  }
  const int64_t end = int64_t{slice.first_position()} + slice.token_ids_size();
  if (end > limits.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("has a token at position ", end - 1,
                                                   "; the model has ", limits.max_positions));
  }
  if (end > slice.kv_blocks_size() * limits.block_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("has a token at position ", end - 1, " and ",
                                                   slice.kv_blocks_size(), " KV blocks of ",
                                                   limits.block_tokens, " tokens"));
  }
  for (const uint32_t block : slice.kv_blocks()) {
    if (block < limits.kv_blocks) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("names KV block ", block, " of ", limits.kv_blocks));
  }
  return CheckSamplingParams(slice.sampling(), limits.vocab_size);
}

}  // namespace

int64_t CountRows(const v1::Step& step) {
  int64_t rows = 0;
  for (const v1::SequenceSlice& slice : step.slices()) rows += slice.token_ids_size();
  return rows;
}

absl::Status CheckStep(const v1::Step& step, const StepLimits& limits) {
  const int64_t num_rows = CountRows(step);
  if (num_rows > limits.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", num_rows, " tokens; at most ", limits.max_rows, " fit"));
  }
  for (const v1::BlockCopy& copy : step.block_copies()) {
    if (copy.from() < limits.kv_blocks && copy.to() < limits.kv_blocks) continue;
    return absl::InvalidArgumentError(absl::StrCat("a copy of KV block ", copy.from(), " to ",
                                                   copy.to(), "; there are ", limits.kv_blocks));
  }
  for (const auto* blocks : {&step.kept_blocks(), &step.restored_blocks()}) {
    for (const v1::ArchivedBlock& block : *blocks) {
      if (block.block() < limits.kv_blocks && KvBlockNameFromWire(block.name()).has_value())
        continue;
      return absl::InvalidArgumentError(absl::StrCat("an archived KV block ", block.block(), " of ",
                                                     limits.kv_blocks, ", with a name of ",
                                                     block.name().size(), " bytes"));
    }
  }
  absl::flat_hash_set<uint64_t> sequences;
  absl::flat_hash_set<uint32_t> written;
  for (const v1::SequenceSlice& slice : step.slices()) {
    const std::string sequence = absl::StrCat("sequence ", slice.sequence_id());
    if (!sequences.insert(slice.sequence_id()).second) {
      return absl::InvalidArgumentError(absl::StrCat(sequence, ": has two slices"));
    }
    CARAVAN_RETURN_IF_ERROR(Annotate(CheckSlice(slice, limits), sequence));
    const int64_t first = slice.first_position();
    const int64_t last = first + slice.token_ids_size() - 1;
    for (int64_t i = first / limits.block_tokens; i <= last / limits.block_tokens; ++i) {
      const uint32_t block = slice.kv_blocks(static_cast<int>(i));
      if (written.insert(block).second) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(sequence, ": KV block ", block, " is written twice in one step"));
    }
  }
  return absl::OkStatus();
}

}  // namespace caravan
