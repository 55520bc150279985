#include "coordinator/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// What the logits of one slice may take on the wire.
constexpr int64_t kMaxLogitsBytes = int64_t{8} << 20;

// Of a step's rows, what decoding sequences leave to prompts.
constexpr int64_t kPrefillShare = 4;  // a quarter

int64_t LogitsBytes(int64_t num_rows, int64_t vocab_size) {
  return num_rows * vocab_size * static_cast<int64_t>(sizeof(float));
}

void AddArchived(const ArchivedKvBlock& block, v1::ArchivedBlock& added) {
  added.set_block(block.block);
  added.set_name(std::string(block.name.view()));
}

template <typename T>
void EraseOne(std::deque<T>& items, T item) {
  const auto it = std::find(items.begin(), items.end(), item);
  if (it != items.end()) items.erase(it);
}

}  // namespace

Scheduler::Scheduler(const Options& options)
    : options_(options),
      blocks_(options.kv_blocks, std::min(options.near_kv_blocks, options.kv_blocks),
              options.kv_block_tokens, options.archive) {
  CARAVAN_CHECK(options.num_stages >= 1);
  CARAVAN_CHECK(options.max_step_tokens >= 1 && options.prefill_chunk >= 1);
  CARAVAN_CHECK(options.vocab_size >= 1);
  if (options.drafts) gate_.emplace(options.num_stages);
}

int64_t Scheduler::ChunkTokens(const Sequence& sequence) const {
  if (!sequence.spec().prompt_logits) return options_.prefill_chunk;
  const int64_t rows = kMaxLogitsBytes / LogitsBytes(1, options_.vocab_size);
  return std::clamp<int64_t>(rows, 1, options_.prefill_chunk);
}

absl::Status Scheduler::CheckFits(const Sequence& sequence) const {
  const int64_t needed = blocks_.BlocksFor(sequence.worst_case_tokens());
  if (needed <= options_.kv_blocks) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(
      "prompt and reply may take ", sequence.worst_case_tokens(), " tokens, that is ", needed,
      " KV blocks of ", options_.kv_block_tokens, "; the cluster has ", options_.kv_blocks));
}

void Scheduler::Enqueue(Sequence* sequence) {
  CARAVAN_CHECK(sequence->state() == SequenceState::kQueued && CheckFits(*sequence).ok());
  queue_[sequence->rank()] = sequence;
}

void Scheduler::Cancel(Sequence* sequence) {
  queue_.erase(sequence->rank());
  Forget(sequence);
  sequence->Cancel(blocks_);
}

std::vector<Sequence*> Scheduler::Release() {
  std::vector<Sequence*> ran;
  std::vector<Sequence*> others;
  for (const ByRank* running : {&running_interactive_, &running_bulk_}) {
    for (const auto& [rank, sequence] : *running) {
      const bool waited = waiting_.contains(rank) && sequence->tokens_in_flight() == 0;
      (waited ? others : ran).push_back(sequence);
    }
  }
  for (Sequence* const sequence : ran) Requeue(sequence);
  for (Sequence* const sequence : others) Requeue(sequence);
  queue_.clear();
  return ran;
}

void Scheduler::Forget(Sequence* sequence) {
  if (running_.erase(sequence->id()) == 0) return;
  if (sequence->state() == SequenceState::kDecoding) --num_decoding_;
  running_interactive_.erase(sequence->rank());
  running_bulk_.erase(sequence->rank());
  waiting_.erase(sequence->rank());
  TakeOutOfLine(sequence);
}

void Scheduler::TakeOutOfLine(Sequence* sequence) {
  prefilling_ready_.erase(sequence->rank());
  EraseOne(decoding_ready_, sequence);
}

void Scheduler::Line(Sequence* sequence) {
  if (sequence->pending_tokens() == 0 || waiting_.contains(sequence->rank())) return;
  if (sequence->state() == SequenceState::kDecoding) {
    decoding_ready_.push_back(sequence);
  } else {
    prefilling_ready_[sequence->rank()] = sequence;
  }
}

Sequence* Scheduler::Victim() const {
  for (const ByRank* running : {&running_bulk_, &running_interactive_}) {
    const auto youngest = std::find_if(running->rbegin(), running->rend(), [](const auto& entry) {
      return entry.second->preemptible();
    });
    if (youngest != running->rend()) return youngest->second;
  }
  return nullptr;
}

void Scheduler::Requeue(Sequence* sequence) {
  Forget(sequence);
  sequence->Preempt(blocks_);
  queue_[sequence->rank()] = sequence;
}

void Scheduler::RequeueRestoring() {
  std::vector<Sequence*> restoring;
  for (const auto& [id, sequence] : running_) {
    if (!sequence->table().pending_restores.empty()) restoring.push_back(sequence);
  }
  for (Sequence* const sequence : restoring) Requeue(sequence);
}

void Scheduler::Preempt(Sequence* sequence) {
  Requeue(sequence);
  ++counters_.preemptions;
}

bool Scheduler::MakeRoom(Sequence* sequence) {
  while (!blocks_.Grow(sequence->known_tokens(), sequence->table())) {
    Sequence* const victim = Victim();  // there is one: who decodes is preemptible
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

void Scheduler::Admit(bool admit) {
  if (AdmitSuspects(admit)) return;
  ResumeOthers();
  if (!admit) return;
  while (!queue_.empty()) {
    Sequence* const sequence = queue_.begin()->second;
    while (!sequence->Admit(blocks_, /*reserve=*/static_cast<int64_t>(running_.size()))) {
      if (sequence->spec().priority != JobPriority::kInteractive) return;
      Sequence* const victim = Victim();
      if (victim == nullptr || victim->spec().priority != JobPriority::kBulk) return;
      if (victim->rank() < sequence->rank()) return;
      Preempt(victim);
    }
    Run(sequence);
  }
}

bool Scheduler::AdmitSuspects(bool admit) {
  if (!options_.suspects) return false;
  const auto is_suspect = [](const auto& entry) { return entry.second->suspicion().is_suspect(); };
  if (std::any_of(running_.begin(), running_.end(), is_suspect)) {
    HaveOthersWait();
    return true;
  }
  if (!admit) return false;
  std::vector<Sequence*> suspects;
  for (const auto& [rank, sequence] : queue_) {
    if (sequence->suspicion().is_suspect()) suspects.push_back(sequence);
  }
  if (suspects.empty()) return false;
  HaveOthersWait();
  // Who takes the pipeline down now may still be in a step under way.
  if (in_flight_.empty()) AdmitGroup(std::move(suspects));
  return true;
}

void Scheduler::AdmitGroup(std::vector<Sequence*> suspects) {
  std::stable_sort(suspects.begin(), suspects.end(), [](const Sequence* a, const Sequence* b) {
    return a->suspicion().group() < b->suspicion().group();
  });
  while (!suspects.front()->Admit(blocks_)) {
    if (waiting_.empty()) return;
    const auto gives_way = std::find_if(waiting_.rbegin(), waiting_.rend(), [](const auto& entry) {
      return entry.second->preemptible();
    });
    Preempt(gives_way != waiting_.rend() ? gives_way->second : waiting_.rbegin()->second);
  }
  Run(suspects.front());
  const int64_t limit =
      std::min(suspects.front()->suspicion().group(), static_cast<int64_t>(std::ssize(suspects)));
  int64_t size = 1;
  while (size < limit && suspects[static_cast<size_t>(size)]->Admit(blocks_)) {
    Run(suspects[static_cast<size_t>(size++)]);
  }
  LogInfo("suspects_run", {{"plan", options_.plan_version},
                           {"together", size},
                           {"suspects", std::ssize(suspects)},
                           {"others", std::ssize(queue_) + std::ssize(running_) -
                                          static_cast<int64_t>(std::ssize(suspects))}});
}

void Scheduler::HaveOthersWait() {
  for (const auto& [id, sequence] : running_) {
    if (sequence->suspicion().is_suspect()) continue;
    if (waiting_.emplace(sequence->rank(), sequence).second) TakeOutOfLine(sequence);
  }
}

void Scheduler::ResumeOthers() {
  const ByRank waited = std::exchange(waiting_, {});
  for (const auto& [rank, sequence] : waited) Line(sequence);
}

void Scheduler::Run(Sequence* sequence) {
  queue_.erase(sequence->rank());
  running_[sequence->id()] = sequence;
  const bool bulk = sequence->spec().priority == JobPriority::kBulk;
  (bulk ? running_bulk_ : running_interactive_)[sequence->rank()] = sequence;
  counters_.prefix_query_tokens += sequence->known_tokens();
  counters_.prefix_hit_tokens += sequence->cached_tokens();
  Line(sequence);
}

std::optional<v1::Step> Scheduler::NextStep(bool admit) {
  if (static_cast<int>(in_flight_.size()) >= options_.num_stages) return std::nullopt;
  Admit(admit);
  if (decoding_ready_.empty() && prefilling_ready_.empty()) return std::nullopt;

  v1::Step step = BeginStep();
  FillSlices(&step);
  if (step.slices().empty()) {  // all that were in line gave way to others
    in_flight_.pop_back();
    return std::nullopt;
  }
  // What is kept was there before this step, whoever has the block by now.
  EndStep(blocks_.TakeKept(), &step);
  return step;
}

std::optional<v1::Step> Scheduler::ArchivingStep() {
  if (!in_flight_.empty()) return std::nullopt;
  const std::vector<ArchivedKvBlock> kept = blocks_.TakeKept();
  if (kept.empty()) return std::nullopt;
  v1::Step step = BeginStep();
  EndStep(kept, &step);
  return step;
}

v1::Step Scheduler::BeginStep() {
  v1::Step step;
  step.set_plan_version(options_.plan_version);
  step.set_step_id(last_step_id_ + 1);
  in_flight_.emplace_back().step_id = step.step_id();
  return step;
}

void Scheduler::EndStep(const std::vector<ArchivedKvBlock>& kept, v1::Step* step) {
  for (const ArchivedKvBlock& block : kept) AddArchived(block, *step->add_kept_blocks());
  ++last_step_id_;
  ++counters_.steps;
}

void Scheduler::FillSlices(v1::Step* step) {
  const int64_t rows = FillDecoding(step);
  FillPrefilling(options_.max_step_tokens - rows, step);
}

int64_t Scheduler::FillDecoding(v1::Step* step) {
  int64_t max_rows = options_.max_step_tokens;
  if (!prefilling_ready_.empty()) {
    max_rows = std::max<int64_t>(1, max_rows - CeilDiv(max_rows, kPrefillShare));
  }
  const int64_t limit = std::min(CeilDiv<int64_t>(num_decoding_, options_.num_stages), max_rows);
  SentStep& sent = in_flight_.back();
  sent.drafts = speculating();
  sent.num_decoding = num_decoding_;
  std::vector<Sequence*> chosen;
  while (static_cast<int64_t>(chosen.size()) < limit && !decoding_ready_.empty()) {
    Sequence* const sequence = decoding_ready_.front();
    decoding_ready_.pop_front();
    if (MakeRoom(sequence)) chosen.push_back(sequence);
  }
  // Who was chosen may have had to give way to one chosen later.
  chosen.erase(std::remove_if(chosen.begin(), chosen.end(),
                              [](Sequence* sequence) { return !sequence->running(); }),
               chosen.end());
  const int64_t rows_for_drafts = max_rows - static_cast<int64_t>(chosen.size());
  int64_t num_drafts = 0;
  for (Sequence* const sequence : chosen) {
    const int64_t drafts =
        sent.drafts ? MakeRoomForDrafts(sequence, rows_for_drafts - num_drafts) : 0;
    AddSlice(sequence, 1 + drafts, sent.drafts, step);
    num_drafts += drafts;
  }
  return static_cast<int64_t>(chosen.size()) + num_drafts;
}

int64_t Scheduler::MakeRoomForDrafts(Sequence* sequence, int64_t max_rows) {
  int64_t drafts = std::min(sequence->num_drafts(), max_rows);
  while (drafts > 0 && !blocks_.Grow(sequence->known_tokens() + drafts, sequence->table())) {
    --drafts;
  }
  return drafts;
}

void Scheduler::FillPrefilling(int64_t rows_left, v1::Step* step) {
  for (auto it = prefilling_ready_.begin(); it != prefilling_ready_.end() && rows_left > 0;) {
    Sequence* const sequence = it->second;
    rows_left -=
        AddSlice(sequence, std::min(rows_left, ChunkTokens(*sequence)), options_.drafts, step);
    it = sequence->pending_tokens() == 0 ? prefilling_ready_.erase(it) : std::next(it);
  }
}

int64_t Scheduler::AddSlice(Sequence* sequence, int64_t max_rows, bool draft, v1::Step* step) {
  BlockTable& table = sequence->table();
  if (table.pending_copy.has_value()) {
    v1::BlockCopy& copy = *step->add_block_copies();
    copy.set_from(table.pending_copy->from);
    copy.set_to(table.pending_copy->to);
  }
  for (const ArchivedKvBlock& restore : table.pending_restores) {
    AddArchived(restore, *step->add_restored_blocks());
  }
  blocks_.CopySent(table);
  if (!table.pending_uses.empty() || !table.pending_restores.empty()) blocks_.ArchiveSent(table);
  v1::SequenceSlice& slice = *step->add_slices();
  slice = sequence->TakeSlice(max_rows, draft);
  counters_.rows += slice.token_ids_size();
  SentSlice& sent = in_flight_.back().slices.emplace_back();
  sent.sequence_id = slice.sequence_id();
  sent.run = sequence->run();
  sent.first_position = slice.first_position();
  sent.num_tokens = slice.token_ids_size() - static_cast<int64_t>(slice.num_draft_tokens());
  sent.drafts.assign(slice.token_ids().begin() + sent.num_tokens, slice.token_ids().end());
  sent.num_scored = slice.scored_token_ids_size();
  sent.output = slice.output();
  sent.drafting = slice.draft();
  sent.decoding = sequence->state() == SequenceState::kDecoding;
  return sent.num_rows();
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
    if (const absl::Status tokens = CheckTokens(slice, result); !tokens.ok()) {
      return error(tokens.message());
    }
    const auto logits_bytes = static_cast<int64_t>(result.logits().size());
    const int64_t expected_bytes = slice.output == v1::SLICE_OUTPUT_LOGITS
                                       ? LogitsBytes(slice.num_rows(), options_.vocab_size)
                                       : 0;
    if (logits_bytes != expected_bytes) {
      return error(logits_bytes, " bytes of logits instead of ", expected_bytes);
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckTokens(const SentSlice& slice, const v1::SliceResult& result) const {
  const auto error = [](auto&&... what) { return absl::InternalError(absl::StrCat(what...)); };
  const auto drafts = static_cast<int64_t>(slice.drafts.size());
  const int64_t least = slice.output == v1::SLICE_OUTPUT_SAMPLE ? 1 : 0;
  const int64_t most = least + drafts;
  if (result.sampled_size() < least || result.sampled_size() > most ||
      result.scored_size() != slice.num_scored) {
    return error(result.sampled_size(), " sampled and ", result.scored_size(),
                 " scored tokens instead of ", least,
                 most > least ? absl::StrCat(" to ", most) : "", " and ", slice.num_scored);
  }
  const auto check_id = [&](uint32_t id) {
    if (id < options_.vocab_size) return absl::OkStatus();
    return error("token id ", id, ", outside the vocabulary of ", options_.vocab_size);
  };
  for (int i = 0; i < result.sampled_size(); ++i) {
    const uint32_t id = result.sampled(i).token_id();
    CARAVAN_RETURN_IF_ERROR(check_id(id));
    if (i + 1 < result.sampled_size() && id != slice.drafts[static_cast<size_t>(i)]) {
      return error("token ", id, " for an accepted draft of ",
                   slice.drafts[static_cast<size_t>(i)]);
    }
  }
  for (const uint32_t id : result.draft_token_ids()) CARAVAN_RETURN_IF_ERROR(check_id(id));
  if (result.draft_token_ids_size() > 0 && !(slice.drafting && least == 1)) {
    return error("drafts that nobody asked for");
  }
  return absl::OkStatus();
}

void Scheduler::TellGate(const SentStep& sent, const v1::Step& step, absl::Duration round_trip) {
  SpeculationGate::Step seen;
  seen.drafts = sent.drafts;
  seen.num_decoding = sent.num_decoding;
  seen.round_trip = round_trip;
  for (size_t i = 0; i < sent.slices.size(); ++i) {
    if (!sent.slices[i].decoding) {
      seen.prompt_rows += sent.slices[i].num_rows();
      continue;
    }
    ++seen.decoding_slices;
    seen.sampled_tokens += step.results(static_cast<int>(i)).sampled_size();
  }
  if (seen.decoding_slices > 0) gate_->StepReturned(seen);
}

absl::StatusOr<std::vector<Scheduler::ReturnedSlice>> Scheduler::TakeIn(const v1::Step& step,
                                                                        absl::Duration round_trip) {
  if (in_flight_.empty() || in_flight_.front().step_id != step.step_id()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step.step_id(), " came home where ",
                     in_flight_.empty() ? std::string("none")
                                        : absl::StrCat("step ", in_flight_.front().step_id),
                     " was due"));
  }
  if (!step.has_error()) CARAVAN_RETURN_IF_ERROR(CheckResults(in_flight_.front(), step));
  const SentStep sent = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (step.has_error() && step.error().code() == static_cast<int>(absl::StatusCode::kNotFound)) {
    blocks_.ForgetArchive();
    RequeueRestoring();
  }
  if (gate_.has_value() && !step.has_error()) TellGate(sent, step, round_trip);

  std::vector<ReturnedSlice> returned;
  for (size_t i = 0; i < sent.slices.size(); ++i) {
    const SentSlice& slice = sent.slices[i];
    const auto it = running_.find(slice.sequence_id);
    // Ended or preempted meanwhile; a later run computes the same once more.
    if (it == running_.end() || it->second->run() != slice.run) continue;
    Sequence* const sequence = it->second;
    if (step.has_error()) {
      Requeue(sequence);
      returned.push_back({sequence, slice.first_position, nullptr, 0});
      continue;
    }
    const v1::SliceResult& result = step.results(static_cast<int>(i));
    const SequenceState before = sequence->state();
    if (before == SequenceState::kDecoding) --num_decoding_;
    const int num_tokens = sequence->CompleteSlice(slice.num_tokens, result, blocks_);
    returned.push_back({sequence, slice.first_position, &result, num_tokens});
    if (!slice.drafts.empty()) {
      counters_.draft_tokens += static_cast<int64_t>(slice.drafts.size());
      counters_.draft_accepted_tokens += result.sampled_size() - 1;
    }
    if (sequence->state() == SequenceState::kDecoding) {
      ++num_decoding_;
      Line(sequence);
    } else if (!sequence->running()) {
      Forget(sequence);
    }
  }
  return returned;
}

}  // namespace caravan
