#include "worker/experts/expert_store.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cluster/expert_slots.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Create(
    const ModelConfig& config, const StageSpec& stage, const TensorSource& source,
    int64_t budget_bytes, const Options& options, HeldExperts held) {
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<ExpertFiles> files,
                           ExpertFiles::Open(config, stage, source));
  // One that is kept and one that passes, if a token chooses one only.
  const int64_t least =
      std::min(std::max<int64_t>(config.router.num_experts_per_tok, 2), files->num_experts());
  const int64_t slot_bytes = files->max_run_bytes();
  const int64_t slots = std::min(budget_bytes / slot_bytes, files->num_experts());
  if (slots < least) {
    return absl::FailedPreconditionError(
        absl::StrCat("routed experts get ", budget_bytes, " bytes of memory, but the ", least,
                     " that a token may need at once take ", least * slot_bytes));
  }
  const auto num_passed = static_cast<int>(PassedExpertSlots(slots, files->num_experts()));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CachePolicy> policy, MakeCachePolicy(options.policy));
  std::unique_ptr<ExpertStore> store(new ExpertStore(std::move(files), static_cast<int>(slots),
                                                     num_passed, std::move(policy), options));
  held.Fit(store->files_->layers(), slot_bytes, static_cast<int>(slots),
           store->slots_.num_cached());
  CARAVAN_ASSIGN_OR_RETURN(store->reads_,
                           ExpertReads::Create(*store->files_, static_cast<int>(slots), options,
                                               store->meter_, std::move(held.memory)));
  for (const HeldExperts::Expert& expert : held.experts) {
    store->slots_.Adopt(expert.key, expert.frame);
    store->reads_->Adopt(expert.frame, expert.key);
  }
  store->stayed_layers_ = std::move(held.layers);
  LogInfo("experts on disk", {{"slots", slots},
                              {"experts", store->files_->num_experts()},
                              {"slot_bytes", slot_bytes},
                              {"held", std::ssize(held.experts)},
                              {"reads", store->reads_->queue().Name()}});
  return store;
}

ExpertStore::ExpertStore(std::unique_ptr<ExpertFiles> files, int num_slots, int num_passed,
                         std::unique_ptr<CachePolicy> policy, const Options& options)
    : files_(std::move(files)),
      guess_when_(num_passed == 0 ? Guesses::kNever : options.guesses),
      slots_(*files_, num_slots, num_passed, std::move(policy), meter_),
      guesses_(files_->experts_per_layer()) {
  const size_t num_experts = static_cast<size_t>(files_->experts_per_layer());
  tally_.reserve(num_experts);
  needs_.reserve(num_experts);
  read_order_.reserve(num_experts);
  batch_.reserve(num_experts);
  batch_needs_.reserve(num_experts);
}

HeldExperts ExpertStore::Release(std::unique_ptr<ExpertStore> store) {
  store->EndVisit();
  // Errors are of reads that no visit wants.
  store->CollectReads().IgnoreError();
  HeldExperts held;
  // Of a layer that was not warmed nobody knows whether anybody has a use for what is not there.
  held.layers = store->is_warm_ ? store->files_->layers() : std::move(store->stayed_layers_);
  held.frame_bytes = store->files_->max_run_bytes();
  held.uses = store->cache().History(store->step_);
  for (const ExpertKey key : store->cache().InOrder()) {
    const int slot = store->slots_.Find(key);
    const int frame = store->slots_.FrameOf(slot);
    if (store->slots_.IsReady(slot) && store->reads_->IsChecked(frame)) {
      held.experts.push_back({key, frame});
    }
  }
  held.memory = ExpertReads::Release(std::move(store->reads_));
  return held;
}

std::vector<ExpertKey> ExpertStore::WarmKeys() const {
  const bool all = HoldsAll();
  std::vector<ExpertKey> keys;
  for (const int layer : files_->layers()) {
    for (int expert = 0; expert < files_->experts_per_layer(); ++expert) {
      const ExpertKey key = {layer, expert};
      if (!all && (slots_.cache().score(key) == kNoScore || IsInUpperTier(key))) continue;
      keys.push_back(key);
    }
  }
  const size_t most = static_cast<size_t>(slots_.num_cached());
  if (keys.size() > most) {
    std::stable_sort(keys.begin(), keys.end(), [this](ExpertKey a, ExpertKey b) {
      return slots_.cache().score(a) > slots_.cache().score(b);
    });
    keys.resize(most);
    std::sort(keys.begin(), keys.end());
  }
  std::erase_if(keys, [this](ExpertKey key) {
    return std::binary_search(stayed_layers_.begin(), stayed_layers_.end(), key.layer);
  });
  return keys;
}

int64_t ExpertStore::BytesOf(absl::Span<const ExpertKey> keys) const {
  int64_t bytes = 0;
  for (const ExpertKey key : keys) bytes += files_->run_bytes(key.layer);
  return bytes;
}

int64_t ExpertStore::warm_bytes() const { return BytesOf(WarmKeys()); }

absl::Status ExpertStore::Warm(const Progress& progress) {
  CARAVAN_RETURN_IF_ERROR(Read(
      WarmKeys(), HoldsAll(), [](ExpertKey, const FfnWeights&) { return absl::OkStatus(); },
      progress));
  is_warm_ = true;
  return absl::OkStatus();
}

absl::Status ExpertStore::Read(absl::Span<const ExpertKey> keys, bool is_needed, TakeExpert take,
                               const Progress& progress) {
  if (keys.empty()) return absl::OkStatus();
  const int64_t total = BytesOf(keys);
  int64_t done = 0;
  for (size_t i = 0; i < keys.size();) {
    EndVisit();  // one that was left
    layer_ = keys[i].layer;
    needs_.clear();
    for (; i < keys.size() && keys[i].layer == layer_; ++i) {
      needs_.push_back({.expert = keys[i].expert, .score = kAnyScore});
    }
    is_scan_ = false;
    ascending_ = true;
    BeginVisit();
    while (true) {
      if (!progress(done, total)) {
        EndVisit();
        return absl::CancelledError("reading experts was stopped");
      }
      const absl::StatusOr<absl::Span<const LoadedExpert>> batch = Next();
      if (!batch.ok()) {
        if (is_needed) return batch.status();
        // It fails the steps that want it, if any do; what is left of the layer comes when it is
        // wanted.
        LogWarning("expert_not_warmed", {{"why", batch.status().message()}});
        break;
      }
      if (batch->empty()) break;
      for (const LoadedExpert& expert : *batch) {
        CARAVAN_RETURN_IF_ERROR(take({layer_, expert.id}, expert.weights));
      }
      done += static_cast<int64_t>(batch->size()) * files_->run_bytes(layer_);
    }
  }
  layer_ = std::numeric_limits<int>::max();
  progress(total, total);
  return absl::OkStatus();
}

ExpertBatches& ExpertStore::Visit(int layer, absl::Span<const int32_t> expert_ids,
                                  absl::Span<const float> weights) {
  EnterStep(layer);
  EndVisit();  // one that was left
  layer_ = layer;
  CountNeeds(expert_ids, weights);
  is_scan_ = 2 * static_cast<int>(needs_.size()) > files_->experts_per_layer();
  ascending_ = static_cast<int64_t>(expert_ids.size()) > kMaxUnorderedShares;
  if (is_scan_) step_costs_.counts = false;
  BeginVisit();
  int64_t hits = 0;
  for (const Need& need : needs_) {
    if (need.slot >= 0 && slots_.IsReady(need.slot)) ++hits;
  }
  const int64_t misses = static_cast<int64_t>(needs_.size()) - hits;
  if (misses == 0) ascending_ = true;
  meter_.Add(&ExpertCounters::hits, hits);
  meter_.Add(&ExpertCounters::misses, misses);
  return batches_;
}

void ExpertStore::EnterStep(int layer) {
  if (layer > layer_) return;
  EndVisit();  // one that was left
  if (step_costs_.counts) gate_.StepEnded(step_costs_.lost, step_costs_.brought);
  step_costs_ = {};
  ++step_;
  layer_ = -1;
  is_scan_ = false;
}

bool ExpertStore::WantsGuess(int layer) {
  EnterStep(layer);
  if (guess_when_ == Guesses::kNever || is_scan_) return false;
  step_costs_.counts = true;
  return guess_when_ == Guesses::kAlways || gate_.Guesses();
}

void ExpertStore::Guess(int layer, absl::Span<const int32_t> expert_ids,
                        absl::Span<const float> weights, absl::Duration took) {
  step_costs_.lost += took;
  guesses_.SetLikely(layer, expert_ids, weights);
  if (BeginNeeded()) BeginGuesses();
}

void ExpertStore::CountNeeds(absl::Span<const int32_t> expert_ids,
                             absl::Span<const float> weights) {
  CARAVAN_CHECK(expert_ids.size() == weights.size());
  tally_.assign(static_cast<size_t>(files_->experts_per_layer()), Need{});
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    CARAVAN_CHECK(expert_ids[i] >= 0 && expert_ids[i] < files_->experts_per_layer());
    Need& need = tally_[static_cast<size_t>(expert_ids[i])];
    need.expert = expert_ids[i];
    ++need.rows;
    need.weight += weights[i];
  }
  needs_.clear();
  for (const Need& need : tally_) {
    if (need.rows > 0) needs_.push_back(need);
  }
  cache().BeginVisit(step_, static_cast<int>(needs_.size()));
  for (Need& need : needs_) {
    need.score = cache().Use({layer_, need.expert}, {step_, need.rows, need.weight});
  }
}

void ExpertStore::BeginVisit() {
  num_given_ = 0;
  // Errors here are of reads that no visit wants any more: their experts are not in memory.
  CollectReads().IgnoreError();
  const bool was_guessed = guesses_.layer() == layer_;
  int64_t guessable = 0;
  for (Need& need : needs_) {
    need.slot = slots_.Find({layer_, need.expert});
    const bool is_guess = need.slot >= 0 && slots_.At(need.slot).guess;
    if (need.slot < 0 || is_guess) ++step_costs_.brought;
    if (is_guess || (was_guessed && need.slot < 0)) ++guessable;
    if (need.slot < 0) continue;
    if (slots_.IsReading(need.slot)) reads_->Promote(slots_.FrameOf(need.slot));
    slots_.Want(need.slot);
  }
  meter_.Add(&ExpertCounters::guessable, guessable);
  DropGuesses();
  // Now that the cache's own are held.
  for (Need& need : needs_) {
    if (need.slot >= 0 && slots_.IsPassed(need.slot)) {
      need.slot = slots_.EnterCache(need.slot, need.score);
    }
  }
  read_order_.resize(needs_.size());
  std::iota(read_order_.begin(), read_order_.end(), size_t{0});
  if (!is_scan_ && !ascending_) {
    std::sort(read_order_.begin(), read_order_.end(), [this](size_t a, size_t b) {
      return std::pair(-needs_[a].rows, a) < std::pair(-needs_[b].rows, b);
    });
  }
  guesses_.Clear();
  // A scan goes on with the next layer, from its first expert on; after the last layer comes the
  // next step's first.
  if (is_scan_) guesses_.SetAll(files_->NextLayer(layer_));
  if (BeginNeeded()) BeginGuesses();
}

// Next waits only while a read is under way, and reads end. If none is, all that has a slot is
// ready, and nothing but the visit holds any. Where order is free, what is ready is given, so
// nothing has a slot: a free one is found for what is left. Where it is kept, the first expert that
// was not given has no slot, so none that it may take is free: those through which experts pass
// have later ones, which were guessed before the visit. MakeRoom gives up one of those, and there
// the first one can go. (Where none pass, there are as many slots as experts, and all begin.)
absl::StatusOr<absl::Span<const LoadedExpert>> ExpertStore::Next() {
  ReleaseBatch();
  while (true) {
    absl::Status status = CollectReads();
    if (status.ok() && BeginNeeded()) BeginGuesses();
    if (status.ok()) status = FillBatch();
    if (!status.ok()) {
      EndVisit();
      return status;
    }
    if (!batch_.empty() || num_given_ == needs_.size()) return absl::MakeConstSpan(batch_);
    if (reads_->num_under_way() > 0) {
      step_costs_.lost += reads_->Wait();
    } else {
      MakeRoom();
    }
  }
}

absl::Status ExpertStore::FillBatch() {
  // In a scan half of what passes at most: the other half is being read meanwhile.
  const int num_passed = slots_.num_passed();
  const size_t most = is_scan_ && num_passed > 0 ? std::max(num_passed / 2, 1) : needs_.size();
  for (size_t i = 0; i < needs_.size() && batch_.size() < most; ++i) {
    Need& need = needs_[i];
    if (need.given) continue;
    if (need.slot >= 0 && slots_.IsReady(need.slot)) {
      CARAVAN_RETURN_IF_ERROR(CheckBytes(need.slot));
    }
    if (need.slot < 0 || !slots_.IsReady(need.slot)) {
      if (ascending_) break;
      continue;
    }
    need.given = true;
    ++num_given_;
    batch_needs_.push_back(i);
    batch_.push_back({need.expert, reads_->WeightsAt(slots_.FrameOf(need.slot))});
  }
  return absl::OkStatus();
}

void ExpertStore::ReleaseBatch() {
  for (const size_t i : batch_needs_) slots_.Unwant(std::exchange(needs_[i].slot, -1));
  batch_needs_.clear();
  batch_.clear();
}

void ExpertStore::EndVisit() {
  for (Need& need : needs_) {
    if (need.slot >= 0 && slots_.At(need.slot).wanted) slots_.Unwant(need.slot);
  }
  needs_.clear();
  read_order_.clear();
  batch_needs_.clear();
  batch_.clear();
  num_given_ = 0;
}

bool ExpertStore::BeginNeeded() {
  for (const size_t i : read_order_) {
    Need& need = needs_[i];
    if (need.slot >= 0 || need.given) continue;
    need.slot = TakeFor(need);
    if (need.slot < 0) return false;
    BeginRead(need.slot, {layer_, need.expert}, ReadPriority::kNeeded);
  }
  return true;
}

int ExpertStore::TakeFor(const Need& need) {
  const int slot = slots_.Take({layer_, need.expert}, need.score);
  return slot >= 0 ? slot : slots_.FindFreePassed();
}

bool ExpertStore::HasRoomForGuess() const {
  return slots_.HasFreeCached() || slots_.FindFreePassed() >= 0;
}

void ExpertStore::BeginGuesses() {
  while (HasRoomForGuess()) {
    const std::optional<ExpertKey> key = NextGuess();
    if (!key.has_value()) return;
    const int slot =
        slots_.HasFreeCached() ? slots_.Take(*key, kAnyScore) : slots_.FindFreePassed();
    BeginRead(slot, *key, ReadPriority::kGuess);
  }
}

std::optional<ExpertKey> ExpertStore::NextGuess() {
  while (const std::optional<ExpertKey> key = guesses_.Next()) {
    if (slots_.Find(*key) < 0 && !IsInUpperTier(*key)) return key;
  }
  return std::nullopt;
}

void ExpertStore::DropGuesses() {
  for (int slot = slots_.num_cached(); slot < num_slots(); ++slot) {
    if (!slots_.At(slot).guess) continue;
    if (slots_.IsReading(slot) && !reads_->Cancel(slots_.FrameOf(slot))) {
      slots_.GiveUpGuess(slot);  // it has begun
    } else {
      slots_.Lose(slot);
    }
  }
}

void ExpertStore::MakeRoom() {
  for (size_t i = needs_.size(); i-- > 0;) {
    if (needs_[i].given || needs_[i].slot < 0 || !slots_.IsPassed(needs_[i].slot)) continue;
    return slots_.Unwant(std::exchange(needs_[i].slot, -1));
  }
  CARAVAN_CHECK(false);  // see Next
}

void ExpertStore::BeginRead(int slot, ExpertKey key, ReadPriority priority) {
  slots_.Begin(slot, key, priority == ReadPriority::kGuess);
  reads_->Begin(slots_.FrameOf(slot), key, priority);
}

bool ExpertStore::ReadOtherCopy(int slot) {
  if (!reads_->FromOtherCopy(slots_.FrameOf(slot))) return false;
  slots_.Again(slot);
  return true;
}

absl::Status ExpertStore::CollectReads() {
  absl::Status error;
  for (const ExpertReads::Ended& ended : reads_->TakeEnded()) {
    const int slot = slots_.SlotOf(ended.frame);
    if (ended.status.ok()) {
      slots_.End(slot);
      continue;
    }
    if (slots_.At(slot).wanted) {
      // Each visit tries for itself: what failed may have been asked of the disk long before.
      if (slots_.At(slot).found) {
        slots_.Again(slot);
        reads_->Again(ended.frame);
        continue;
      }
      if (ReadOtherCopy(slot)) continue;
      error.Update(reads_->Error(ended.frame, ended.status));
    }
    slots_.Lose(slot);
  }
  return error;
}

absl::Status ExpertStore::CheckBytes(int slot) {
  const absl::Status status = reads_->Check(slots_.FrameOf(slot));
  if (status.ok() || ReadOtherCopy(slot)) return absl::OkStatus();
  slots_.Lose(slot);
  return status;
}

}  // namespace caravan
