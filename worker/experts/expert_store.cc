#include "worker/experts/expert_store.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// Slots through which experts pass, of `slots` in all: enough for some to be computed while the
/// next are read, and little against the cache.
int NumPassed(int slots) { return std::clamp(slots / 4, 1, 32); }

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Create(const ModelConfig& config,
                                                                 const StageSpec& stage,
                                                                 const TensorSource& source,
                                                                 int64_t budget_bytes,
                                                                 const Options& options) {
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
  const int num_passed = slots == files->num_experts() ? 0 : NumPassed(static_cast<int>(slots));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CachePolicy> policy, MakeCachePolicy(options.policy));
  CARAVAN_ASSIGN_OR_RETURN(Buffer memory, Buffer::Allocate(slots * slot_bytes));
  memory.PreferLargePages();
  if (!memory.Lock()) {
    LogInfo("experts not locked in memory",
            {{"bytes", memory.size()}, {"reason", "the limit of locked memory"}});
  }
  ReadQueue::Options reads = options.reads;
  reads.memory = absl::MakeSpan(memory.data(), static_cast<size_t>(memory.size()));
  std::unique_ptr<ExpertStore> store(
      new ExpertStore(std::move(files), std::move(memory), num_passed, std::move(policy), options));
  CARAVAN_ASSIGN_OR_RETURN(store->queue_, options.make_queue(reads));
  LogInfo("experts on disk", {{"slots", slots},
                              {"experts", store->files_->num_experts()},
                              {"slot_bytes", slot_bytes},
                              {"reads", store->queue_->Name()}});
  return store;
}

ExpertStore::ExpertStore(std::unique_ptr<ExpertFiles> files, Buffer memory, int num_passed,
                         std::unique_ptr<CachePolicy> policy, const Options& options)
    : files_(std::move(files)),
      verify_(options.verify),
      guess_when_(num_passed == 0 ? Guesses::kNever : options.guesses),
      slot_bytes_(files_->max_run_bytes()),
      memory_(std::move(memory)),
      cache_({.first_layer = files_->layers().front(),
              .num_layers = files_->layers().back() - files_->layers().front() + 1,
              .experts_per_layer = files_->experts_per_layer(),
              .num_slots = static_cast<int>(memory_.size() / slot_bytes_) - num_passed},
             std::move(policy)),
      slots_(static_cast<size_t>(memory_.size() / slot_bytes_)),
      frame_of_(slots_.size()),
      free_cached_(cache_.shape().num_slots),
      verified_(static_cast<size_t>(files_->num_disks()) *
                static_cast<size_t>(cache_.shape().num_layers) *
                static_cast<size_t>(cache_.shape().experts_per_layer)),
      bytes_under_way_(static_cast<size_t>(files_->num_disks())),
      was_bad_(bytes_under_way_.size()),
      guesses_(files_->experts_per_layer()) {
  std::iota(frame_of_.begin(), frame_of_.end(), 0);
  slot_of_ = frame_of_;
  const size_t num_experts = static_cast<size_t>(files_->experts_per_layer());
  tally_.reserve(num_experts);
  needs_.reserve(num_experts);
  read_order_.reserve(num_experts);
  batch_.reserve(num_experts);
  batch_needs_.reserve(num_experts);
  // A slot has one read.
  collected_.reserve(slots_.size());
  MutexLock lock(&mu_);
  ended_.reserve(slots_.size());
}

std::vector<ExpertKey> ExpertStore::WarmKeys() const {
  const bool all = static_cast<int64_t>(slots_.size()) == files_->num_experts();
  std::vector<ExpertKey> keys;
  for (const int layer : files_->layers()) {
    for (int expert = 0; expert < files_->experts_per_layer(); ++expert) {
      const ExpertKey key = {layer, expert};
      if (all || cache_.score(key) != kNoScore) keys.push_back(key);
    }
  }
  const size_t most = static_cast<size_t>(cache_.shape().num_slots);
  if (keys.size() <= most) return keys;
  std::stable_sort(keys.begin(), keys.end(),
                   [this](ExpertKey a, ExpertKey b) { return cache_.score(a) > cache_.score(b); });
  keys.resize(most);
  std::sort(keys.begin(), keys.end());
  return keys;
}

int64_t ExpertStore::BytesOf(absl::Span<const ExpertKey> keys) const {
  int64_t bytes = 0;
  for (const ExpertKey key : keys) bytes += files_->run_bytes(key.layer);
  return bytes;
}

int64_t ExpertStore::warm_bytes() const { return BytesOf(WarmKeys()); }

absl::Status ExpertStore::Warm(const Progress& progress) {
  const std::vector<ExpertKey> keys = WarmKeys();
  if (keys.empty()) return absl::OkStatus();
  const bool all = static_cast<int64_t>(keys.size()) == files_->num_experts();
  const int64_t total = BytesOf(keys);
  int64_t done = 0;
  for (size_t i = 0; i < keys.size();) {
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
        if (all) return batch.status();
        // It fails the steps that want it, if any do; what is left of the layer comes when it is
        // wanted.
        LogWarning("expert_not_warmed", {{"why", batch.status().message()}});
        break;
      }
      if (batch->empty()) break;
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
    if (need.slot >= 0 && At(need.slot).state == Slot::State::kReady) ++hits;
  }
  const int64_t misses = static_cast<int64_t>(needs_.size()) - hits;
  if (misses == 0) ascending_ = true;
  MutexLock lock(&mu_);
  counters_.hits += hits;
  counters_.misses += misses;
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
  cache_.BeginVisit(step_, static_cast<int>(needs_.size()));
  for (Need& need : needs_) {
    need.score = cache_.Use({layer_, need.expert}, {step_, need.rows, need.weight});
  }
}

void ExpertStore::BeginVisit() {
  num_given_ = 0;
  // Errors here are of reads that no visit wants any more: their experts are not in memory.
  CollectReads().IgnoreError();
  const bool was_guessed = guesses_.layer() == layer_;
  int64_t guessable = 0;
  for (Need& need : needs_) {
    need.slot = FindSlot({layer_, need.expert});
    const bool is_guess = need.slot >= 0 && At(need.slot).guess;
    if (need.slot < 0 || is_guess) ++step_costs_.brought;
    if (is_guess || (was_guessed && need.slot < 0)) ++guessable;
    if (need.slot >= 0) Want(need.slot);
  }
  {
    MutexLock lock(&mu_);
    counters_.guessable += guessable;
  }
  DropGuesses();
  // Now that the cache's own are held.
  for (Need& need : needs_) {
    if (need.slot >= 0 && IsPassed(need.slot)) EnterCache(need);
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
    if (reading_ > 0) {
      WaitForRead();
    } else {
      MakeRoom();
    }
  }
}

absl::Status ExpertStore::FillBatch() {
  // In a scan half of what passes at most: the other half is being read meanwhile.
  const int num_passed = num_slots() - cache_.shape().num_slots;
  const size_t most = is_scan_ && num_passed > 0 ? std::max(num_passed / 2, 1) : needs_.size();
  for (size_t i = 0; i < needs_.size() && batch_.size() < most; ++i) {
    Need& need = needs_[i];
    if (need.given) continue;
    if (need.slot >= 0 && At(need.slot).state == Slot::State::kReady) {
      CARAVAN_RETURN_IF_ERROR(CheckBytes(need.slot));
    }
    if (need.slot < 0 || At(need.slot).state != Slot::State::kReady) {
      if (ascending_) break;
      continue;
    }
    need.given = true;
    ++num_given_;
    batch_needs_.push_back(i);
    batch_.push_back({need.expert, files_->WeightsAt({layer_, need.expert}, MemoryOf(need.slot))});
  }
  return absl::OkStatus();
}

void ExpertStore::ReleaseBatch() {
  for (const size_t i : batch_needs_) Unwant(std::exchange(needs_[i].slot, -1));
  batch_needs_.clear();
  batch_.clear();
}

void ExpertStore::EndVisit() {
  for (Need& need : needs_) {
    if (need.slot >= 0 && At(need.slot).wanted) Unwant(need.slot);
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
  const int slot = TakeFromCache(need);
  return slot >= 0 ? slot : FindFreePassed();
}

int ExpertStore::TakeFromCache(const Need& need) {
  return TakeCached({layer_, need.expert}, need.score);
}

void ExpertStore::EnterCache(Need& need) {
  const int cached = TakeFromCache(need);
  if (cached < 0) return;
  // Its bytes stay where they are.
  std::swap(frame_of_[static_cast<size_t>(cached)], frame_of_[static_cast<size_t>(need.slot)]);
  for (const int slot : {cached, need.slot}) {
    slot_of_[static_cast<size_t>(frame_of_[static_cast<size_t>(slot)])] = slot;
  }
  At(cached) = std::exchange(At(need.slot), {});
  if (At(cached).state == Slot::State::kReading) cache_.Hold(cached);  // beside the read's own
  need.slot = cached;
}

void ExpertStore::BeginGuesses() {
  while (free_cached_ > 0 || FindFreePassed() >= 0) {
    const std::optional<ExpertKey> key = NextGuess();
    if (!key.has_value()) return;
    const int slot = free_cached_ > 0 ? TakeCached(*key, kAnyScore) : FindFreePassed();
    BeginRead(slot, *key, ReadPriority::kGuess);
  }
}

std::optional<ExpertKey> ExpertStore::NextGuess() {
  while (const std::optional<ExpertKey> key = guesses_.Next()) {
    if (FindSlot(*key) < 0) return key;
  }
  return std::nullopt;
}

void ExpertStore::DropGuesses() {
  for (int slot = cache_.shape().num_slots; slot < num_slots(); ++slot) {
    if (!At(slot).guess) continue;
    if (At(slot).state == Slot::State::kReading) {
      if (!queue_->Cancel(At(slot).read)) {
        // It has begun. Its end frees the slot, unless a visit wants it by then.
        At(slot).guess = false;
        CountWasted(files_->run_bytes(At(slot).key.layer));
        continue;
      }
      EndRead(slot);
    }
    Forget(slot);
  }
}

void ExpertStore::MakeRoom() {
  for (size_t i = needs_.size(); i-- > 0;) {
    if (needs_[i].given || needs_[i].slot < 0 || !IsPassed(needs_[i].slot)) continue;
    return Unwant(std::exchange(needs_[i].slot, -1));
  }
  CARAVAN_CHECK(false);  // see Next
}

void ExpertStore::BeginRead(int slot, ExpertKey key, ReadPriority priority) {
  const bool is_guess = priority == ReadPriority::kGuess;
  At(slot) = {.key = key, .wanted = !is_guess, .guess = is_guess, .copy = ChooseCopy(key.layer)};
  if (!is_guess && !IsPassed(slot)) cache_.Hold(slot);  // beside the read's own
  if (is_guess) {
    MutexLock lock(&mu_);
    ++counters_.guesses;
  }
  SubmitRead(slot, priority);
}

void ExpertStore::SubmitRead(int slot, ReadPriority priority) {
  const ExpertKey key = At(slot).key;
  const int copy = At(slot).copy;
  ++reading_;
  At(slot).state = Slot::State::kReading;
  At(slot).found = false;
  bytes_under_way_[static_cast<size_t>(files_->DiskOf(key.layer, copy))] +=
      files_->run_bytes(key.layer);
  const int frame = frame_of_[static_cast<size_t>(slot)];
  At(slot).read = queue_->Submit(files_->ReadOf(key, copy, MemoryOf(slot)), priority,
                                 [this, frame](const absl::Status& status) {
                                   MutexLock lock(&mu_);
                                   ended_.push_back({frame, status});
                                   read_ended_.SignalAll();
                                 });
}

void ExpertStore::EndRead(int slot) {
  const int layer = At(slot).key.layer;
  --reading_;
  bytes_under_way_[static_cast<size_t>(files_->DiskOf(layer, At(slot).copy))] -=
      files_->run_bytes(layer);
}

int ExpertStore::ChooseCopy(int layer) const {
  int best = 0;
  for (int copy = 1; copy < files_->num_copies(layer); ++copy) {
    if (bytes_under_way_[static_cast<size_t>(files_->DiskOf(layer, copy))] <
        bytes_under_way_[static_cast<size_t>(files_->DiskOf(layer, best))]) {
      best = copy;
    }
  }
  return best;
}

bool ExpertStore::ReadOtherCopy(int slot) {
  Slot& bad = At(slot);
  const int copies = files_->num_copies(bad.key.layer);
  if (bad.bad_copies + 1 == copies) return false;
  const size_t disk = static_cast<size_t>(files_->DiskOf(bad.key.layer, bad.copy));
  if (!was_bad_[disk]) {
    LogWarning("experts read from other copies",
               {{"instead_of", files_->PathOf(bad.key.layer, bad.copy)},
                {"layer", bad.key.layer},
                {"expert", bad.key.expert}});
  }
  was_bad_[disk] = true;
  ++bad.bad_copies;
  bad.copy = (bad.copy + 1) % copies;
  bad.checked = false;
  // The read's own hold, which that of a read that just failed still has.
  if (bad.state == Slot::State::kReady && !IsPassed(slot)) cache_.Hold(slot);
  SubmitRead(slot, ReadPriority::kNeeded);
  MutexLock lock(&mu_);
  ++counters_.failovers;
  return true;
}

void ExpertStore::WaitForRead() {
  const absl::Duration begin = SteadyClock().Now();
  MutexLock lock(&mu_);
  while (ended_.empty()) read_ended_.Wait(&mu_);
  const absl::Duration waited = SteadyClock().Now() - begin;
  counters_.waited += waited;
  step_costs_.lost += waited;
}

absl::Status ExpertStore::CollectReads() {
  {
    MutexLock lock(&mu_);
    collected_.swap(ended_);
    for (const Ended& ended : collected_) {
      if (!ended.status.ok()) continue;
      ++counters_.reads;
      counters_.bytes_read += files_->run_bytes(At(SlotOf(ended)).key.layer);
    }
  }
  absl::Status error;
  for (const Ended& ended : collected_) {
    const int slot = SlotOf(ended);
    EndRead(slot);
    if (ended.status.ok()) {
      At(slot).state = Slot::State::kReady;
      if (!IsPassed(slot)) {
        cache_.Release(slot);
      } else if (!At(slot).wanted && !At(slot).guess) {
        Forget(slot);
      }
      continue;
    }
    if (At(slot).wanted) {
      // Each visit tries for itself: what failed may have been asked of the disk long before.
      if (At(slot).found) {
        SubmitRead(slot, ReadPriority::kNeeded);
        continue;
      }
      if (ReadOtherCopy(slot)) continue;
      error.Update(files_->Error(At(slot).key, At(slot).copy, ended.status.message()));
      Unwant(slot);
    }
    Forget(slot);
  }
  collected_.clear();
  return error;
}

absl::Status ExpertStore::CheckBytes(int slot) {
  if (std::exchange(At(slot).checked, true) || verify_ == Verify::kNever) return absl::OkStatus();
  const ExpertKey key = At(slot).key;
  const int copy = At(slot).copy;
  const ExpertCache::Shape& shape = cache_.shape();
  const int64_t layer =
      int64_t{files_->DiskOf(key.layer, copy)} * shape.num_layers + key.layer - shape.first_layer;
  std::vector<bool>::reference verified =
      verified_[static_cast<size_t>(layer * shape.experts_per_layer + key.expert)];
  if (verify_ == Verify::kFirst && verified) return absl::OkStatus();
  const absl::Status status = files_->CheckHash(key, copy, MemoryOf(slot));
  verified = status.ok();
  if (status.ok() || ReadOtherCopy(slot)) return absl::OkStatus();
  At(slot).wanted = false;  // with its hold
  Forget(slot);
  return status;
}

int ExpertStore::FindSlot(ExpertKey key) const {
  if (const std::optional<int> slot = cache_.Find(key); slot.has_value()) return *slot;
  for (int slot = cache_.shape().num_slots; slot < num_slots(); ++slot) {
    const Slot& passed = slots_[static_cast<size_t>(slot)];
    if (passed.state != Slot::State::kFree && passed.key == key) return slot;
  }
  return -1;
}

int ExpertStore::FindFreePassed() const {
  for (int slot = cache_.shape().num_slots; slot < num_slots(); ++slot) {
    if (slots_[static_cast<size_t>(slot)].state == Slot::State::kFree) return slot;
  }
  return -1;
}

int ExpertStore::TakeCached(ExpertKey key, double score) {
  const std::optional<int> taken = cache_.Take(key, score);
  if (!taken.has_value()) return -1;
  if (At(*taken).state == Slot::State::kFree) {
    --free_cached_;
    return *taken;
  }
  if (At(*taken).guess) CountWasted(files_->run_bytes(At(*taken).key.layer));
  MutexLock lock(&mu_);
  ++counters_.evictions;
  return *taken;
}

void ExpertStore::Want(int slot) {
  Slot& wanted = At(slot);
  wanted.wanted = true;
  if (!IsPassed(slot)) cache_.Hold(slot);
  if (wanted.state == Slot::State::kReading) {
    queue_->Promote(wanted.read);
    wanted.found = true;
  }
  if (!std::exchange(wanted.guess, false)) return;
  MutexLock lock(&mu_);
  ++counters_.guesses_used;
}

void ExpertStore::Unwant(int slot) {
  At(slot).wanted = false;
  if (!IsPassed(slot)) {
    cache_.Release(slot);
  } else if (At(slot).state == Slot::State::kReady) {
    Forget(slot);
  }
}

void ExpertStore::Forget(int slot) {
  if (At(slot).guess) {
    CountWasted(At(slot).state == Slot::State::kReady ? files_->run_bytes(At(slot).key.layer) : 0);
  }
  At(slot) = {};
  if (IsPassed(slot)) return;
  cache_.Drop(slot);
  ++free_cached_;
}

void ExpertStore::CountWasted(int64_t bytes) {
  MutexLock lock(&mu_);
  ++counters_.guesses_wasted;
  counters_.bytes_wasted += bytes;
}

ExpertStore::Counters ExpertStore::counters() const {
  MutexLock lock(&mu_);
  return counters_;
}

}  // namespace caravan
