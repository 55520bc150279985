#include "worker/experts/card_experts.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

constexpr int64_t kSlotAlignment = 256;  // of a card's loads

// Sets of experts that costs are measured with: R1's are 200 MB each at four bits.
constexpr int64_t kMeasuredSets = 4;
// No more rows are measured after that.
constexpr absl::Duration kEnoughMeasured = absl::Seconds(2);

/// Slots through which experts pass, of `slots` in all: a few experts' copies are under way while
/// those before them are computed.
int NumPassed(int64_t slots) { return static_cast<int>(std::clamp<int64_t>(slots / 8, 1, 32)); }

/// Where the matrices of an expert lie: [first, first + bytes).
struct Extent {
  const std::byte* first = nullptr;
  int64_t bytes = 0;
};

Extent ExtentOf(const FfnWeights& weights) {
  const std::byte* first = nullptr;
  const std::byte* end = nullptr;
  const auto cover = [&](const std::byte* data, int64_t bytes) {
    if (data == nullptr) return;
    if (first == nullptr || data < first) first = data;
    if (end == nullptr || data + bytes > end) end = data + bytes;
  };
  for (const Matrix* w : {&weights.gate, &weights.up, &weights.down}) {
    cover(w->data, MatrixBytes(*w));
    cover(reinterpret_cast<const std::byte*>(w->scale_inv),
          Fp8Blocks(w->rows) * Fp8Blocks(w->cols) * static_cast<int64_t>(sizeof(float)));
  }
  return {first, end - first};
}

/// The same matrices where their bytes were copied to.
FfnWeights MovedTo(FfnWeights weights, const std::byte* from, const std::byte* to) {
  for (Matrix* w : {&weights.gate, &weights.up, &weights.down}) {
    w->data = to + (w->data - from);
    if (w->scale_inv != nullptr) {
      w->scale_inv = reinterpret_cast<const float*>(
          to + (reinterpret_cast<const std::byte*>(w->scale_inv) - from));
    }
  }
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CardExperts>> CardExperts::Create(const ModelConfig& config,
                                                                 ExpertStore& store, Backend& card,
                                                                 Backend& cpu,
                                                                 const Options& options) {
  const int64_t slot_bytes = RoundUp(store.files().max_run_bytes(), kSlotAlignment);
  const int64_t slots = std::min(options.budget_bytes / slot_bytes, store.files().num_experts());
  if (slots < 2) {
    return absl::FailedPreconditionError(
        absl::StrCat("routed experts get ", FormatByteSize(options.budget_bytes),
                     " of the card's memory, but two take ", FormatByteSize(2 * slot_bytes)));
  }
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CachePolicy> policy, MakeCachePolicy(options.policy));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CopyQueue> copies, card.memory().MakeCopyQueue());
  const int num_passed = NumPassed(slots);
  ExpertCache::Shape shape = store.cache().shape();
  shape.num_slots = static_cast<int>(slots) - num_passed;
  auto experts =
      absl::WrapUnique(new CardExperts(config, store, card, cpu, shape, num_passed,
                                       std::move(policy), slot_bytes, std::move(copies)));
  CARAVAN_RETURN_IF_ERROR(experts->TakeMemory(options));
  if (const absl::Status pinned = experts->copies_->Pin(store.memory(), store.num_bytes());
      !pinned.ok()) {
    LogWarning("experts_not_pinned", {{"why", pinned.message()}});
  }
  store.SetUpperTier(experts->cache_);
  LogInfo("experts_on_card",
          {{"slots", slots}, {"experts", store.files().num_experts()}, {"slot_bytes", slot_bytes}});
  return experts;
}

CardExperts::CardExperts(const ModelConfig& config, ExpertStore& store, Backend& card, Backend& cpu,
                         const ExpertCache::Shape& shape, int num_passed,
                         std::unique_ptr<CachePolicy> policy, int64_t slot_bytes,
                         std::unique_ptr<CopyQueue> copies)
    : config_(config),
      store_(store),
      card_(card),
      cpu_(cpu),
      slot_bytes_(slot_bytes),
      num_cached_(shape.num_slots),
      num_passed_(num_passed),
      cache_(shape, std::move(policy)),
      weights_of_(static_cast<size_t>(num_slots())),
      copies_(std::move(copies)),
      need_of_(static_cast<size_t>(shape.experts_per_layer), -1) {}

absl::Status CardExperts::TakeMemory(const Options& options) {
  Memory& memory = card_.memory();
  const int64_t choices = options.max_rows * config_.router.num_experts_per_tok;
  const int64_t floats = options.max_rows * config_.hidden_size;
  CARAVAN_ASSIGN_OR_RETURN(slots_, memory.Allocate(num_slots() * slot_bytes_, Memory::Use::kWhole));
  CARAVAN_ASSIGN_OR_RETURN(hit_ids_, AllocateValues<int32_t>(memory, choices));
  CARAVAN_ASSIGN_OR_RETURN(copied_ids_, AllocateValues<int32_t>(memory, choices));
  CARAVAN_ASSIGN_OR_RETURN(card_cpu_sum_, AllocateValues<float>(memory, floats));
  for (std::vector<int32_t>* ids : {&ids_, &cpu_ids_, &scratch_ids_}) {
    ids->reserve(static_cast<size_t>(choices));
  }
  host_weights_.reserve(static_cast<size_t>(choices));
  cpu_sum_.resize(static_cast<size_t>(floats));
  return absl::OkStatus();
}

absl::StatusOr<ExpertCosts> CardExperts::MeasureCosts() {
  const int layer = store_.files().layers().front();
  // As stay in memory from one visit to the next.
  const int64_t in_memory =
      std::min<int64_t>(store_.cache().shape().num_slots, store_.files().experts_per_layer());
  const int64_t k = std::min<int64_t>({config_.router.num_experts_per_tok, num_slots(), in_memory});
  // So many sets of k experts, one after another, that no cache of the CPU holds them.
  const int64_t sets = std::clamp<int64_t>(in_memory / k, 1, kMeasuredSets);
  const int64_t max_rows = std::ssize(cpu_sum_) / config_.hidden_size;

  std::vector<ExpertKey> keys;
  for (int32_t expert = 0; expert < sets * k; ++expert) keys.push_back({layer, expert});
  std::vector<LoadedExpert> on_card;
  double copy_seconds = std::numeric_limits<double>::infinity();
  CARAVAN_RETURN_IF_ERROR(store_.Read(
      keys, true,
      [&](ExpertKey key, const FfnWeights& weights) {
        const int slot = static_cast<int>(key.expert % k);
        const absl::Duration start = SteadyClock().Now();
        CARAVAN_RETURN_IF_ERROR(BeginCopy(weights, slot));
        CARAVAN_RETURN_IF_ERROR(WaitForCopies());
        // The least: the first ones find nothing ready, and others may be interrupted.
        copy_seconds = std::min(copy_seconds, absl::ToDoubleSeconds(SteadyClock().Now() - start));
        if (key.expert < k) on_card.push_back({key.expert, {}});
        on_card[static_cast<size_t>(slot)].weights = weights_of_[static_cast<size_t>(slot)];
        return absl::OkStatus();
      },
      [](int64_t, int64_t) { return true; }));

  // Of an expert, over one pass through the sets; a pass before that finds everything ready.
  const auto timed = [&](const auto& run) -> absl::StatusOr<double> {
    absl::Duration start;
    for (int pass = 0; pass < 2; ++pass) {
      start = SteadyClock().Now();
      for (int64_t set = 0; set < sets; ++set) CARAVAN_RETURN_IF_ERROR(run(set));
    }
    return absl::ToDoubleSeconds(SteadyClock().Now() - start) / static_cast<double>(sets * k);
  };
  Memory& memory = card_.memory();
  CARAVAN_ASSIGN_OR_RETURN(const Array x,
                           AllocateValues<float>(memory, max_rows * config_.hidden_size));
  CARAVAN_ASSIGN_OR_RETURN(const Array weights, AllocateValues<float>(memory, max_rows * k));
  ExpertCosts costs;
  costs.copy_seconds = copy_seconds;
  const absl::Duration begin = SteadyClock().Now();
  for (int64_t rows = 1; rows <= max_rows; rows *= 4) {
    // Rows that all choose the same k experts, so that each has as many. What the values are is no
    // matter to the time.
    std::vector<int32_t> ids(static_cast<size_t>(rows * k));
    const std::vector<float> host_weights(ids.size(), 1.0f);
    const std::vector<float> host_x(static_cast<size_t>(rows * config_.hidden_size), 1.0f);
    const auto choose = [&](int64_t set) {
      for (size_t i = 0; i < ids.size(); ++i) {
        ids[i] = static_cast<int32_t>(set * k + static_cast<int64_t>(i) % k);
      }
    };
    ExpertCosts::Point point;
    point.rows = rows;
    CARAVAN_ASSIGN_OR_RETURN(point.cpu_seconds, timed([&](int64_t set) {
                               choose(set);
                               ExpertBatches& batches = store_.Visit(layer, ids, host_weights);
                               return cpu_.RoutedExperts(batches, host_x.data(), rows, ids.data(),
                                                         host_weights.data(), k, cpu_sum_.data());
                             }));
    choose(0);
    CARAVAN_RETURN_IF_ERROR(memory.CopyIn(
        ids.data(), static_cast<int64_t>(ids.size() * sizeof(int32_t)), hit_ids_.data()));
    CARAVAN_RETURN_IF_ERROR(memory.CopyIn(
        host_x.data(), static_cast<int64_t>(host_x.size() * sizeof(float)), x.data()));
    CARAVAN_ASSIGN_OR_RETURN(point.card_seconds, timed([&](int64_t) {
                               ResidentExperts resident(on_card);
                               CARAVAN_RETURN_IF_ERROR(card_.RoutedExperts(
                                   resident, x.floats(), rows, hit_ids_.as<int32_t>(),
                                   weights.floats(), k, card_cpu_sum_.floats()));
                               float done = 0;
                               return memory.CopyOut(card_cpu_sum_.data(), sizeof(done), &done);
                             }));
    costs.points.push_back(point);
    // Two points tell what a row more costs.
    if (costs.points.size() > 1 && SteadyClock().Now() - begin > kEnoughMeasured) break;
  }
  // Nobody wanted them.
  for (const ExpertKey key : keys) store_.cache().SetScore(key, kNoScore);
  LogInfo("expert_costs", {{"copy_ms", 1e3 * costs.copy_seconds},
                           {"cpu_ms", 1e3 * costs.CpuSeconds(1)},
                           {"card_ms", 1e3 * costs.CardSeconds(1)},
                           {"rows", costs.points.back().rows},
                           {"cpu_ms_at_rows", 1e3 * costs.points.back().cpu_seconds},
                           {"card_ms_at_rows", 1e3 * costs.points.back().card_seconds}});
  return costs;
}

int64_t CardExperts::warm_bytes() const {
  return std::min<int64_t>(num_cached_, store_.files().num_experts()) *
         store_.files().max_run_bytes();
}

absl::Status CardExperts::Warm(const ExpertStore::Progress& progress) {
  std::vector<ExpertKey> keys;
  for (const int layer : store_.files().layers()) {
    for (int32_t expert = 0; expert < store_.files().experts_per_layer(); ++expert) {
      keys.push_back({layer, expert});
    }
  }
  std::stable_sort(keys.begin(), keys.end(),
                   [this](ExpertKey a, ExpertKey b) { return cache_.score(a) > cache_.score(b); });
  keys.resize(std::min(keys.size(), static_cast<size_t>(num_cached_)));
  std::sort(keys.begin(), keys.end());
  return store_.Read(
      keys, false,
      [this](ExpertKey key, const FfnWeights& weights) {
        const int slot = *cache_.Take(key);
        CARAVAN_RETURN_IF_ERROR(BeginCopy(weights, slot));
        cache_.Release(slot);
        return WaitForCopies();
      },
      progress);
}

absl::Status CardExperts::Begin(int layer, absl::Span<const int32_t> expert_ids,
                                absl::Span<const float> weights, int64_t num_rows, const float* x) {
  EndVisit();  // one that was left
  if (layer <= layer_ || step_ < 0) ++step_;
  layer_ = layer;
  num_rows_ = num_rows;
  CountNeeds(expert_ids, weights);
  PlaceNeeds();

  // The store reads and gives what is not here.
  ids_.assign(expert_ids.begin(), expert_ids.end());
  scratch_ids_.clear();
  host_weights_.clear();
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (NeedOf(ids_[i]).is_hit) continue;
    scratch_ids_.push_back(ids_[i]);
    host_weights_.push_back(weights[i]);
  }
  missing_ = scratch_ids_.empty() ? nullptr : &store_.Visit(layer, scratch_ids_, host_weights_);

  CARAVAN_RETURN_IF_ERROR(MaskIds([](const Need& need) { return need.is_hit; }, hit_ids_));
  if (missing_ == nullptr) return absl::OkStatus();
  MaskIds([](const Need& need) { return !need.is_hit && need.place == ExpertPlace::kCpu; },
          cpu_ids_);
  host_weights_.assign(weights.begin(), weights.end());
  CARAVAN_ASSIGN_OR_RETURN(host_x_,
                           OnHost(card_.memory(), x, num_rows * config_.hidden_size, x_copy_));
  return absl::OkStatus();
}

void CardExperts::CountNeeds(absl::Span<const int32_t> expert_ids,
                             absl::Span<const float> weights) {
  std::fill(need_of_.begin(), need_of_.end(), -1);
  needs_.clear();
  for (const int32_t id : expert_ids) need_of_[static_cast<size_t>(id)] = 0;
  for (size_t id = 0; id < need_of_.size(); ++id) {
    if (need_of_[id] < 0) continue;
    need_of_[id] = static_cast<int>(needs_.size());
    needs_.push_back({.expert = static_cast<int32_t>(id)});
  }
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    Need& need = NeedOf(expert_ids[i]);
    ++need.rows;
    need.weight += weights[i];
  }
  cache_.BeginVisit(step_, static_cast<int>(needs_.size()));
  for (Need& need : needs_) {
    need.score = cache_.Use({layer_, need.expert}, {step_, need.rows, need.weight});
  }
}

void CardExperts::PlaceNeeds() {
  double busy = 0;
  std::vector<int64_t> rows;
  std::vector<Need*> missing;
  for (Need& need : needs_) {
    const std::optional<int> slot = cache_.Find({layer_, need.expert});
    if (slot.has_value()) {
      need.is_hit = true;
      need.slot = *slot;
      cache_.Hold(*slot);
      busy += costs_.CardSeconds(need.rows);
    } else {
      rows.push_back(need.rows);
      missing.push_back(&need);
    }
  }
  // In order of id, as they come past kMaxUnorderedShares, slots can be used again.
  const bool ascending =
      std::accumulate(rows.begin(), rows.end(), int64_t{0}) > kMaxUnorderedShares;
  split_ = SplitExperts(costs_, rows, busy,
                        ascending ? std::numeric_limits<int64_t>::max() : num_passed_);
  next_passed_ = num_cached_;
  for (size_t i = 0; i < missing.size(); ++i) {
    Need& need = *missing[i];
    need.place = split_.places[i];
    if (need.place == ExpertPlace::kCpu) continue;
    need.slot = cache_.Take({layer_, need.expert}, WorthOf(need)).value_or(-1);
    if (need.slot < 0) {
      need.slot = next_passed_++;
      if (next_passed_ == num_slots()) next_passed_ = num_cached_;
    }
  }
  Promote();
}

// While the CPU computes, the way to the card is free for as long.
void CardExperts::Promote() {
  double left = split_.cpu_seconds;
  std::vector<Need*> candidates;
  for (Need& need : needs_) {
    if (need.is_hit) continue;
    if (need.place == ExpertPlace::kCpu) {
      candidates.push_back(&need);
    } else {
      left -= costs_.copy_seconds;
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [this](const Need* a, const Need* b) { return WorthOf(*a) > WorthOf(*b); });
  for (Need* const need : candidates) {
    left -= costs_.copy_seconds;
    if (left < 0) return;
    const std::optional<int> slot = cache_.Take({layer_, need->expert}, WorthOf(*need));
    if (!slot.has_value()) return;
    need->slot = *slot;
  }
}

void CardExperts::MaskIds(IsOurs is_ours, std::vector<int32_t>& masked) {
  masked.clear();
  for (const int32_t id : ids_) masked.push_back(is_ours(NeedOf(id)) ? id : kNotHere);
}

absl::Status CardExperts::MaskIds(IsOurs is_ours, const Array& masked) {
  MaskIds(is_ours, scratch_ids_);
  return card_.memory().CopyIn(scratch_ids_.data(),
                               static_cast<int64_t>(scratch_ids_.size() * sizeof(int32_t)),
                               masked.data());
}

absl::Status CardExperts::Run(const float* x, const float* weights, float* out) {
  x_ = x;
  weights_ = weights;
  out_ = out;
  const absl::Duration start = SteadyClock().Now();
  Counters counted;
  std::vector<LoadedExpert> hits;
  for (const Need& need : needs_) {
    if (!need.is_hit) continue;
    hits.push_back({need.expert, weights_of_[static_cast<size_t>(need.slot)]});
  }
  counted.hits = static_cast<int64_t>(hits.size());
  CARAVAN_RETURN_IF_ERROR(RunOnCard(std::move(hits), hit_ids_));
  if (missing_ != nullptr) {
    const int64_t count = num_rows_ * config_.hidden_size;
    const auto bytes = count * static_cast<int64_t>(sizeof(float));
    std::fill_n(cpu_sum_.begin(), count, 0.0f);
    CpuBatches batches(*this);
    CARAVAN_RETURN_IF_ERROR(cpu_.RoutedExperts(
        batches, host_x_.data(), num_rows_, cpu_ids_.data(), host_weights_.data(),
        config_.router.num_experts_per_tok, cpu_sum_.data()));
    CARAVAN_RETURN_IF_ERROR(RunCopied());
    for (const Need& need : needs_) {
      if (need.is_hit) continue;
      counted.copied_bytes += need.copied ? store_.files().run_bytes(layer_) : 0;
      if (need.place == ExpertPlace::kCopy) {
        ++counted.copies;
      } else {
        ++counted.on_cpu;
        counted.promotions += need.copied ? 1 : 0;
      }
    }
    if (counted.on_cpu > 0) {
      CARAVAN_RETURN_IF_ERROR(card_.memory().CopyIn(cpu_sum_.data(), bytes, card_cpu_sum_.data()));
      card_.Add(card_cpu_sum_.floats(), count, out);
      counted.took = SteadyClock().Now() - start;
      counted.foretold = absl::Seconds(split_.seconds());
    }
  }
  EndVisit();
  MutexLock lock(&mu_);
  counters_.hits += counted.hits;
  counters_.copies += counted.copies;
  counters_.on_cpu += counted.on_cpu;
  counters_.promotions += counted.promotions;
  counters_.copied_bytes += counted.copied_bytes;
  counters_.took += counted.took;
  counters_.foretold += counted.foretold;
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const LoadedExpert>> CardExperts::NextForCpu() {
  cpu_batch_.clear();
  while (cpu_batch_.empty()) {
    if (given_.empty()) {
      // What the store gave last may go with its next batch.
      CARAVAN_RETURN_IF_ERROR(WaitForCopies());
      CARAVAN_ASSIGN_OR_RETURN(given_, missing_->Next());
      if (given_.empty()) break;
    }
    for (; !given_.empty(); given_.remove_prefix(1)) {
      const LoadedExpert& expert = given_.front();
      Need& need = NeedOf(expert.id);
      const bool is_taken =
          need.slot >= 0 &&
          std::any_of(copied_.begin(), copied_.end(), [&](const LoadedExpert& waiting) {
            return NeedOf(waiting.id).slot == need.slot;
          });
      if (is_taken) {
        // While they are copied the CPU has something to do.
        if (!cpu_batch_.empty()) break;
        CARAVAN_RETURN_IF_ERROR(RunCopied());
      }
      if (need.place == ExpertPlace::kCpu) cpu_batch_.push_back(expert);
      if (need.slot < 0) continue;
      CARAVAN_RETURN_IF_ERROR(BeginCopy(expert.weights, need.slot));
      need.copied = true;
      if (need.place == ExpertPlace::kCopy) {
        need.in_round = true;
        copied_.push_back({expert.id, weights_of_[static_cast<size_t>(need.slot)]});
      }
    }
  }
  return absl::MakeConstSpan(cpu_batch_);
}

absl::Status CardExperts::BeginCopy(const FfnWeights& weights, int slot) {
  const Extent extent = ExtentOf(weights);
  CARAVAN_CHECK(extent.bytes <= slot_bytes_);
  CARAVAN_RETURN_IF_ERROR(copies_->Begin(extent.first, extent.bytes, MemoryOf(slot)));
  weights_of_[static_cast<size_t>(slot)] = MovedTo(weights, extent.first, MemoryOf(slot));
  copying_ = true;
  return absl::OkStatus();
}

absl::Status CardExperts::WaitForCopies() {
  if (!std::exchange(copying_, false)) return absl::OkStatus();
  return copies_->Wait();
}

absl::Status CardExperts::RunCopied() {
  // Those for later visits, too.
  if (copying_) CARAVAN_RETURN_IF_ERROR(copies_->Precede());
  if (!copied_.empty()) {
    CARAVAN_RETURN_IF_ERROR(MaskIds([](const Need& need) { return need.in_round; }, copied_ids_));
    for (const LoadedExpert& expert : copied_) NeedOf(expert.id).in_round = false;
    std::sort(copied_.begin(), copied_.end(),
              [](const LoadedExpert& a, const LoadedExpert& b) { return a.id < b.id; });
    CARAVAN_RETURN_IF_ERROR(RunOnCard(std::exchange(copied_, {}), copied_ids_));
    // Before Follow, or it would wait for what the card computes.
    CARAVAN_RETURN_IF_ERROR(WaitForCopies());
    CARAVAN_RETURN_IF_ERROR(copies_->Follow());
  }
  return WaitForCopies();
}

absl::Status CardExperts::RunOnCard(std::vector<LoadedExpert> experts, const Array& ids) {
  if (experts.empty()) return absl::OkStatus();
  ResidentExperts resident(std::move(experts));
  return card_.RoutedExperts(resident, x_, num_rows_, ids.as<int32_t>(), weights_,
                             config_.router.num_experts_per_tok, out_);
}

void CardExperts::EndVisit() {
  for (Need& need : needs_) {
    if (need.slot < 0 || IsPassed(need.slot)) continue;
    if (need.is_hit || need.copied) {
      cache_.Release(need.slot);
    } else {
      cache_.Drop(need.slot);  // the visit failed before it was copied
    }
  }
  needs_.clear();
  given_ = {};
  copied_.clear();
  missing_ = nullptr;
}

CardExperts::Counters CardExperts::counters() const {
  MutexLock lock(&mu_);
  return counters_;
}

}  // namespace caravan
