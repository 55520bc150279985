#include "worker/experts/card_experts.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/cpu_model.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/experts/expert_cost_meter.h"

namespace caravan {
namespace {

/// Slots through which experts pass, of `slots` in all, in two halves: a few experts' copies are
/// under way while those before them are computed.
int NumPassed(int64_t slots) {
  return static_cast<int>(std::clamp<int64_t>(slots / 8, 2, 32)) & ~1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CardExperts>> CardExperts::Create(const ModelConfig& config,
                                                                 ExpertStore& store, Backend& card,
                                                                 Backend& cpu,
                                                                 const Options& options) {
  const int64_t slot_bytes = CardSlots::BytesFor(store.files().max_run_bytes());
  const int64_t slots = std::min(options.budget_bytes / slot_bytes, store.files().num_experts());
  if (slots < kLeastSlots) {
    return absl::FailedPreconditionError(absl::StrCat(
        "routed experts get ", FormatByteSize(options.budget_bytes), " of the card's memory, but ",
        kLeastSlots, " take ", FormatByteSize(kLeastSlots * slot_bytes)));
  }
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<CachePolicy> policy, MakeCachePolicy(options.policy));
  const int num_passed = NumPassed(slots);
  ExpertCache::Shape shape = store.cache().shape();
  shape.num_slots = static_cast<int>(slots) - num_passed;
  auto experts = absl::WrapUnique(new CardExperts(config, store, card, cpu, shape, num_passed,
                                                  std::move(policy), options.max_rows));
  CARAVAN_ASSIGN_OR_RETURN(experts->slots_,
                           CardSlots::Create(card.memory(), static_cast<int>(slots), slot_bytes));
  CARAVAN_RETURN_IF_ERROR(experts->TakeMemory());
  experts->slots_->Pin(store.memory(), store.num_bytes());
  store.SetUpperTier(experts->cache_);
  LogInfo("experts_on_card",
          {{"slots", slots}, {"experts", store.files().num_experts()}, {"slot_bytes", slot_bytes}});
  return experts;
}

CardExperts::CardExperts(const ModelConfig& config, ExpertStore& store, Backend& card, Backend& cpu,
                         const ExpertCache::Shape& shape, int num_passed,
                         std::unique_ptr<CachePolicy> policy, int64_t max_rows)
    : config_(config),
      store_(store),
      card_(card),
      cpu_(cpu),
      max_rows_(max_rows),
      num_cached_(shape.num_slots),
      num_passed_(num_passed),
      cache_(shape, std::move(policy)),
      need_of_(static_cast<size_t>(shape.experts_per_layer), -1) {}

absl::Status CardExperts::TakeMemory() {
  Memory& memory = card_.memory();
  const int64_t choices = max_rows_ * config_.router.num_experts_per_tok;
  const int64_t floats = max_rows_ * config_.hidden_size;
  CARAVAN_ASSIGN_OR_RETURN(card_ids_, AllocateValues<int32_t>(memory, 2 * choices));
  CARAVAN_ASSIGN_OR_RETURN(card_cpu_sum_, AllocateValues<float>(memory, floats));
  for (std::vector<int32_t>* ids : {&ids_, &cpu_ids_}) ids->reserve(static_cast<size_t>(choices));
  masks_.reserve(static_cast<size_t>(2 * choices));
  host_weights_.reserve(static_cast<size_t>(choices));
  // As large as their bytes go to and fro.
  for (std::vector<float>* rows : {&x_copy_, &cpu_sum_}) {
    rows->resize(static_cast<size_t>(floats));
    slots_->Pin(reinterpret_cast<std::byte*>(rows->data()),
                floats * static_cast<int64_t>(sizeof(float)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExpertCosts> CardExperts::MeasureCosts() {
  return ExpertCostMeter(config_, {.store = store_,
                                   .slots = *slots_,
                                   .card = card_,
                                   .cpu = cpu_,
                                   .card_ids = card_ids_,
                                   .card_sum = card_cpu_sum_,
                                   .host_sum = absl::MakeSpan(cpu_sum_),
                                   .max_rows = max_rows_})
      .Measure();
}

std::string CardExperts::CostsDependOn() const {
  const int layer = store_.files().layers().front();
  const FfnWeights expert = store_.files().WeightsAt({layer, 0}, nullptr);
  const ExpertCostMeter::Sets sets = ExpertCostMeter::SetsOf(config_, store_, *slots_);
  return absl::StrCat("caravan ", CARAVAN_VERSION, "; ", card_.Name(), "; ", cpu_.Name(), ", ",
                      CpuModel(), "; experts of ", store_.files().run_bytes(layer), " bytes, ",
                      expert.gate.rows, " x ", expert.gate.cols, " in ",
                      DTypeName(expert.gate.dtype), ", ", DTypeName(expert.up.dtype), ", ",
                      DTypeName(expert.down.dtype), "; ", sets.k, " a token, of ",
                      sets.k * sets.count, "; ", max_rows_, " rows");
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
        CARAVAN_RETURN_IF_ERROR(slots_->Begin(weights, slot));
        cache_.Release(slot);
        return slots_->Wait();
      },
      progress);
}

absl::Status CardExperts::Begin(int layer, absl::Span<const int32_t> expert_ids,
                                absl::Span<const float> weights, int64_t num_rows, const float* x) {
  EndVisit();  // one that was left
  if (layer <= layer_ || step_ < 0) ++step_;
  layer_ = layer;
  num_rows_ = num_rows;
  ids_.assign(expert_ids.begin(), expert_ids.end());
  CountNeeds(expert_ids, weights);
  VisitMissing(expert_ids, weights);
  masks_.clear();
  AppendMask([](const Need& need) { return need.is_hit; }, masks_);
  if (missing_ == nullptr) return MaskToCard(masks_, card_ids_.as<int32_t>());

  PlaceMissing();
  const auto is_ours = [](ExpertPlace place) {
    return [place](const Need& need) { return !need.is_hit && need.place == place; };
  };
  AppendMask(is_ours(ExpertPlace::kCopy), masks_);
  CARAVAN_RETURN_IF_ERROR(MaskToCard(masks_, card_ids_.as<int32_t>()));
  cpu_ids_.clear();
  AppendMask(is_ours(ExpertPlace::kCpu), cpu_ids_);
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
    const std::optional<int> slot = cache_.Find({layer_, need.expert});
    if (!slot.has_value()) continue;
    need.is_hit = true;
    need.slot = *slot;
    cache_.Hold(*slot);
  }
}

void CardExperts::VisitMissing(absl::Span<const int32_t> expert_ids,
                               absl::Span<const float> weights) {
  num_missing_ = static_cast<size_t>(
      std::count_if(needs_.begin(), needs_.end(), [](const Need& need) { return !need.is_hit; }));
  if (num_missing_ == 0) return;
  std::vector<int32_t>& ids = cpu_ids_;  // neither is of use before PlaceMissing
  ids.clear();
  host_weights_.clear();
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    if (NeedOf(expert_ids[i]).is_hit) continue;
    ids.push_back(expert_ids[i]);
    host_weights_.push_back(weights[i]);
  }
  missing_ = &store_.Visit(layer_, ids, host_weights_);
  is_ordered_ = missing_->ascending();
}

void CardExperts::PlaceMissing() {
  double busy = 0;
  std::vector<int64_t> rows;
  std::vector<Need*> missing;
  for (Need& need : needs_) {
    if (need.is_hit) {
      busy += costs_.At(static_cast<double>(need.rows), &ExpertCosts::Point::card_seconds);
    } else {
      rows.push_back(need.rows);
      missing.push_back(&need);
    }
  }
  // Slots are used again within a visit where they can be computed from in order.
  const ExpertSplit split = SplitExperts(
      costs_, rows, busy, is_ordered_ ? std::numeric_limits<int64_t>::max() : num_passed_);
  int next_passed = num_cached_;
  for (size_t i = 0; i < missing.size(); ++i) {
    Need& need = *missing[i];
    need.place = split.places[i];
    if (need.place == ExpertPlace::kCpu) continue;
    ++num_copied_;
    need.slot = cache_.Take({layer_, need.expert}, WorthOf(need)).value_or(-1);
    if (need.slot < 0 && !is_ordered_) need.slot = next_passed++;
  }
  Promote(split);
  foretold_seconds_ = Foretell();
}

// While the CPU computes, the way to the card is free for as long.
void CardExperts::Promote(const ExpertSplit& split) {
  double left = split.cpu_seconds - static_cast<double>(num_copied_) * split.copy_seconds;
  std::vector<Need*> candidates;
  for (Need& need : needs_) {
    if (!need.is_hit && need.place == ExpertPlace::kCpu) candidates.push_back(&need);
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [this](const Need* a, const Need* b) { return WorthOf(*a) > WorthOf(*b); });
  for (Need* const need : candidates) {
    left -= split.copy_seconds;
    if (left < 0) return;
    const std::optional<int> slot = cache_.Take({layer_, need->expert}, WorthOf(*need));
    if (!slot.has_value()) return;
    need->slot = *slot;
  }
}

double CardExperts::Foretell() const {
  SharedVisit visit;
  visit.rows = num_rows_;
  double copied = 0;
  for (const Need& need : needs_) {
    const double on_card =
        costs_.At(static_cast<double>(need.rows), &ExpertCosts::Point::card_seconds);
    if (need.is_hit) {
      visit.card_busy_seconds += on_card;
    } else if (need.place == ExpertPlace::kCpu) {
      visit.cpu_rows.push_back(need.rows);
      visit.copies += need.slot >= 0 ? 1 : 0;
    } else {
      copied += on_card;
      ++visit.copies;
    }
  }
  // The last group's; at the end of the visit, all.
  const double groups = is_ordered_ ? 2.0 * static_cast<double>(num_copied_) / num_passed_ : 1;
  visit.copied_card_seconds = copied / std::max(groups, 1.0);
  return ForetellSeconds(costs_, visit);
}

void CardExperts::AppendMask(absl::FunctionRef<bool(const Need& need)> is_ours,
                             std::vector<int32_t>& masks) {
  for (const int32_t id : ids_) masks.push_back(is_ours(NeedOf(id)) ? id : kNotHere);
}

absl::Status CardExperts::MaskToCard(absl::Span<const int32_t> masks, int32_t* to) {
  return card_.memory().CopyIn(masks.data(), static_cast<int64_t>(masks.size() * sizeof(int32_t)),
                               to);
}

absl::Status CardExperts::Run(const float* x, const float* weights, float* out) {
  x_ = x;
  weights_ = weights;
  out_ = out;
  const absl::Duration start = SteadyClock().Now();
  CARAVAN_RETURN_IF_ERROR(RunHits());
  if (missing_ != nullptr) CARAVAN_RETURN_IF_ERROR(RunMissing());
  Count(SteadyClock().Now() - start);
  EndVisit();
  return absl::OkStatus();
}

absl::Status CardExperts::RunHits() {
  std::vector<LoadedExpert> hits;
  for (const Need& need : needs_) {
    if (need.is_hit) hits.push_back({need.expert, slots_->At(need.slot)});
  }
  if (hits.empty()) return absl::OkStatus();
  ResidentExperts resident(std::move(hits));
  return RunOnCard(resident, card_ids_.as<int32_t>());
}

absl::Status CardExperts::RunMissing() {
  // What it copies is under way while the host has this and that to do.
  CARAVAN_RETURN_IF_ERROR(FillCpuBatch());
  has_batch_ = true;
  std::fill_n(cpu_sum_.begin(), num_rows_ * config_.hidden_size, 0.0f);
  CpuBatches batches(*this);
  CARAVAN_RETURN_IF_ERROR(cpu_.RoutedExperts(batches, host_x_.data(), num_rows_, cpu_ids_.data(),
                                             host_weights_.data(),
                                             config_.router.num_experts_per_tok, cpu_sum_.data()));
  CARAVAN_RETURN_IF_ERROR(RunDue());
  if (num_copied_ < num_missing_) CARAVAN_RETURN_IF_ERROR(AddCpuSum());
  CARAVAN_RETURN_IF_ERROR(slots_->Wait());
  // The store takes back what it gave last.
  return missing_->Next().status();
}

absl::Status CardExperts::AddCpuSum() {
  const int64_t count = num_rows_ * config_.hidden_size;
  CARAVAN_RETURN_IF_ERROR(card_.memory().CopyIn(
      cpu_sum_.data(), count * static_cast<int64_t>(sizeof(float)), card_cpu_sum_.data()));
  card_.Add(card_cpu_sum_.floats(), count, out_);
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const LoadedExpert>> CardExperts::NextForCpu() {
  if (!std::exchange(has_batch_, false)) CARAVAN_RETURN_IF_ERROR(FillCpuBatch());
  return absl::MakeConstSpan(cpu_batch_);
}

absl::Status CardExperts::FillCpuBatch() {
  cpu_batch_.clear();
  while (cpu_batch_.empty() && num_given_ < num_missing_) {
    // What the store gave last goes with its next batch.
    CARAVAN_RETURN_IF_ERROR(slots_->Wait());
    CARAVAN_ASSIGN_OR_RETURN(const absl::Span<const LoadedExpert> given, missing_->Next());
    num_given_ += given.size();
    CARAVAN_RETURN_IF_ERROR(TakeGiven(given));
  }
  return absl::OkStatus();
}

absl::Status CardExperts::TakeGiven(absl::Span<const LoadedExpert> given) {
  for (const LoadedExpert& expert : given) {
    Need& need = NeedOf(expert.id);
    if (need.place == ExpertPlace::kCpu) {
      cpu_batch_.push_back(expert);
      continue;
    }
    due_.push_back(expert);
    need.is_due = true;
    if (is_ordered_) continue;
    CARAVAN_RETURN_IF_ERROR(slots_->Begin(expert.weights, need.slot));
    need.copied = true;
  }
  if (is_ordered_) CARAVAN_RETURN_IF_ERROR(RunDue());
  // After what the visit waits for.
  for (const LoadedExpert& expert : cpu_batch_) {
    Need& need = NeedOf(expert.id);
    if (need.slot < 0) continue;
    CARAVAN_RETURN_IF_ERROR(slots_->Begin(expert.weights, need.slot));
    need.copied = true;
  }
  return absl::OkStatus();
}

absl::Status CardExperts::RunDue() {
  if (due_.empty()) return absl::OkStatus();
  int32_t* const ids = card_ids_.as<int32_t>() + ids_.size();
  if (due_.size() < num_copied_) {
    // Begin wrote those of all that are copied.
    masks_.clear();
    AppendMask([](const Need& need) { return need.is_due; }, masks_);
    CARAVAN_RETURN_IF_ERROR(MaskToCard(masks_, ids));
  }
  std::sort(due_.begin(), due_.end(),
            [](const LoadedExpert& a, const LoadedExpert& b) { return a.id < b.id; });
  num_begun_ = 0;
  CopiedBatches copied(*this);
  CARAVAN_RETURN_IF_ERROR(RunOnCard(copied, ids));
  for (const LoadedExpert& expert : due_) NeedOf(expert.id).is_due = false;
  due_.clear();
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const LoadedExpert>> CardExperts::NextCopied() {
  group_.clear();
  const int half = num_passed_ / 2;
  int passed = num_cached_ + next_half_ * half;
  for (int count = 0; count < half && num_begun_ < due_.size(); ++count, ++num_begun_) {
    const LoadedExpert& expert = due_[num_begun_];
    Need& need = NeedOf(expert.id);
    if (!need.copied) {
      if (need.slot < 0) need.slot = passed++;
      CARAVAN_RETURN_IF_ERROR(slots_->Begin(expert.weights, need.slot));
      need.copied = true;
    }
    group_.push_back({expert.id, slots_->At(need.slot)});
  }
  if (group_.empty()) return absl::Span<const LoadedExpert>();
  // The next group comes to the other half, from which the group before this one was computed. The
  // card was asked for that one, and not yet for this.
  CARAVAN_RETURN_IF_ERROR(slots_->Follow());
  CARAVAN_RETURN_IF_ERROR(slots_->Precede());
  next_half_ = 1 - next_half_;
  return absl::MakeConstSpan(group_);
}

absl::Status CardExperts::RunOnCard(ExpertBatches& experts, const int32_t* ids) {
  return card_.RoutedExperts(experts, x_, num_rows_, ids, weights_,
                             config_.router.num_experts_per_tok, out_);
}

void CardExperts::Count(absl::Duration took) {
  Counters counted;
  for (const Need& need : needs_) {
    if (need.is_hit) {
      ++counted.hits;
      continue;
    }
    counted.copied_bytes += need.copied ? store_.files().run_bytes(layer_) : 0;
    if (need.place == ExpertPlace::kCopy) {
      ++counted.copies;
    } else {
      ++counted.on_cpu;
      counted.promotions += need.copied ? 1 : 0;
    }
  }
  MutexLock lock(&mu_);
  counters_.hits += counted.hits;
  counters_.copies += counted.copies;
  counters_.on_cpu += counted.on_cpu;
  counters_.promotions += counted.promotions;
  counters_.copied_bytes += counted.copied_bytes;
  if (counted.on_cpu == 0) return;
  counters_.took += took;
  counters_.foretold += absl::Seconds(foretold_seconds_);
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
  due_.clear();
  cpu_batch_.clear();
  missing_ = nullptr;
  num_missing_ = 0;
  num_copied_ = 0;
  num_given_ = 0;
  has_batch_ = false;
}

CardExperts::Counters CardExperts::counters() const {
  MutexLock lock(&mu_);
  return counters_;
}

}  // namespace caravan
