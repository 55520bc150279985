#include "coordinator/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// What the logits of one slice may take on the wire.
constexpr int64_t kMaxLogitsBytes = int64_t{8} << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t LogitsBytes(int64_t num_rows, int64_t vocab_size) {
  return num_rows * vocab_size * static_cast<int64_t>(sizeof(float));
}

template <typename T>
void EraseOne(std::deque<T>& items, T item) {
  const auto it = std::find(items.begin(), items.end(), item);
  if (it != items.end()) items.erase(it);
}

}  // namespace

Scheduler::Scheduler(const Options& options) : options_(options), free_blocks_(options.kv_blocks) {
  CARAVAN_CHECK(options.num_stages >= 1 && options.kv_blocks >= 0 && options.kv_block_tokens >= 1);
  CARAVAN_CHECK(options.max_step_tokens >= 1 && options.prefill_chunk >= 1);
  CARAVAN_CHECK(options.vocab_size >= 1);
}

int64_t Scheduler::WorstCaseBlocks(const Sequence& sequence) const {
  return CeilDiv(sequence.worst_case_tokens(), options_.kv_block_tokens);
}

int64_t Scheduler::ChunkTokens(const Sequence& sequence) const {
  if (!sequence.wants_prompt_logits()) return options_.prefill_chunk;
  const int64_t rows = kMaxLogitsBytes / LogitsBytes(1, options_.vocab_size);
  return std::clamp<int64_t>(rows, 1, options_.prefill_chunk);
}

absl::Status Scheduler::CheckFits(const Sequence& sequence) const {
  const int64_t needed = WorstCaseBlocks(sequence);
  if (needed <= options_.kv_blocks) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "prompt and reply may take ", sequence.worst_case_tokens(), " tokens, that is ", needed,
      " KV blocks of ", options_.kv_block_tokens, "; the cluster has ", options_.kv_blocks));
}

void Scheduler::Enqueue(Sequence* sequence) {
  CARAVAN_CHECK(sequence->state() == SequenceState::kQueued && CheckFits(*sequence).ok());
  queue_.push_back(sequence);
}

void Scheduler::Release(Sequence* sequence) {
  EraseOne(queue_, sequence);
  EraseOne(ready_, sequence);
  const auto it = running_.find(sequence->id());
  if (it == running_.end()) return;
  if (sequence->tokens_in_flight() > 0) {
    it->second.sequence = nullptr;
  } else {
    Free(sequence->id(), /*known_to_workers=*/sequence->cached_tokens() > 0);
  }
}

// Blocks count as free once the id stands in freed_: it rides ahead of whatever uses them next.
void Scheduler::Free(uint64_t sequence_id, bool known_to_workers) {
  const auto it = running_.find(sequence_id);
  free_blocks_ += it->second.reserved_blocks;
  running_.erase(it);
  if (known_to_workers) freed_.push_back(sequence_id);
}

void Scheduler::Admit() {
  while (!queue_.empty() && WorstCaseBlocks(*queue_.front()) <= free_blocks_) {
    Sequence* sequence = queue_.front();
    queue_.pop_front();
    sequence->Admit();
    const int64_t blocks = WorstCaseBlocks(*sequence);
    free_blocks_ -= blocks;
    running_[sequence->id()] = Running{sequence, blocks};
    ready_.push_back(sequence);
  }
}

std::optional<v1::Step> Scheduler::NextStep(bool admit) {
  if (admit) Admit();
  if (static_cast<int>(in_flight_.size()) >= options_.num_stages) return std::nullopt;
  if (ready_.empty() && freed_.empty()) return std::nullopt;

  v1::Step step;
  step.set_plan_version(options_.plan_version);
  step.set_step_id(++last_step_id_);
  step.mutable_freed_sequence_ids()->Add(freed_.begin(), freed_.end());
  freed_.clear();
  FillSlices(&step);
  SentStep& sent = in_flight_.emplace_back();
  sent.step_id = step.step_id();
  for (const v1::SequenceSlice& slice : step.slices()) {
    sent.slices.push_back({slice.sequence_id(), slice.token_ids_size(), slice.output()});
  }
  return step;
}

void Scheduler::FillSlices(v1::Step* step) {
  const int64_t share = CeilDiv(static_cast<int64_t>(running_.size()), options_.num_stages);
  const int64_t candidates = std::min(share, static_cast<int64_t>(ready_.size()));
  int64_t decoding = std::count_if(ready_.begin(), ready_.begin() + candidates, [](Sequence* s) {
    return s->state() == SequenceState::kDecoding;
  });
  int64_t rows_left = options_.max_step_tokens;
  for (int64_t i = 0; i < candidates && rows_left > 0; ++i) {
    Sequence* sequence = ready_.front();
    ready_.pop_front();
    int64_t rows = 1;
    if (sequence->state() == SequenceState::kDecoding) {
      --decoding;
    } else {
      rows = std::min(ChunkTokens(*sequence), std::max<int64_t>(1, rows_left - decoding));
    }
    *step->add_slices() = sequence->TakeSlice(rows);
    rows_left -= sequence->tokens_in_flight();
  }
}

absl::Status Scheduler::CheckResults(const SentStep& sent, const v1::Step& step) const {
  const auto error = [&](auto&&... what) {
    return absl::InternalError(absl::StrCat("step ", sent.step_id, " came home with ", what...));
  };
  if (step.results_size() != static_cast<int>(sent.slices.size())) {
    return error(step.results_size(), " results for ", sent.slices.size(), " slices");
  }
  for (int i = 0; i < step.results_size(); ++i) {
    const SentSlice& slice = sent.slices[static_cast<size_t>(i)];
    const v1::SliceResult& result = step.results(i);
    if (result.sequence_id() != slice.sequence_id) {
      return error("a result of sequence ", result.sequence_id(), " for a slice of sequence ",
                   slice.sequence_id);
    }
    if (slice.output == v1::SLICE_OUTPUT_SAMPLE && result.token_id() >= options_.vocab_size) {
      return error("token id ", result.token_id(), ", outside the vocabulary of ",
                   options_.vocab_size);
    }
    const auto logits_bytes = static_cast<int64_t>(result.logits().size());
    const int64_t expected_bytes = slice.output == v1::SLICE_OUTPUT_LOGITS
                                       ? LogitsBytes(slice.num_rows, options_.vocab_size)
                                       : 0;
    if (logits_bytes != expected_bytes) {
      return error(logits_bytes, " bytes of logits instead of ", expected_bytes);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Scheduler::ReturnedSlice>> Scheduler::TakeIn(const v1::Step& step) {
  if (in_flight_.empty() || in_flight_.front().step_id != step.step_id()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step.step_id(), " came home where ",
                     in_flight_.empty() ? std::string("none")
                                        : absl::StrCat("step ", in_flight_.front().step_id),
                     " was due"));
  }
  const SentStep& sent = in_flight_.front();
  if (!step.has_error()) CARAVAN_RETURN_IF_ERROR(CheckResults(sent, step));

  std::vector<ReturnedSlice> returned;
  for (size_t i = 0; i < sent.slices.size(); ++i) {
    const uint64_t id = sent.slices[i].sequence_id;
    Sequence* sequence = running_.at(id).sequence;
    if (sequence == nullptr) {
      Free(id, /*known_to_workers=*/true);
      continue;
    }
    if (step.has_error()) {
      sequence->Fail();
      returned.push_back({sequence, nullptr});
    } else {
      const v1::SliceResult& result = step.results(static_cast<int>(i));
      sequence->CompleteSlice(result);
      returned.push_back({sequence, &result});
    }
    if (sequence->running()) {
      ready_.push_back(sequence);
    } else {
      Free(id, /*known_to_workers=*/true);
    }
  }
  in_flight_.pop_front();
  return returned;
}

}  // namespace caravan
