#include "worker/experts/expert_cost_meter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/median.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Of the experts that costs are measured with: more than any cache of a CPU holds.
constexpr int64_t kMeasuredBytes = int64_t{2} << 30;
// No more rows are measured after that.
constexpr absl::Duration kEnoughMeasured = absl::Seconds(2);
// Measurements are repeated for so long, or through all sets of experts, and medians count.
constexpr double kMeasuredSeconds = 0.2;
constexpr size_t kLeastRuns = 2;
constexpr int kRepeats = 9;
// Copies beside the CPU's part, in the time that it takes alone.
constexpr double kOutlasting = 1.5;
// What lies between two layers' experts at least, in which threads fall asleep.
constexpr double kPauseSeconds = 0.0005;

double Now() { return absl::ToDoubleSeconds(SteadyClock().Now()); }

}  // namespace

ExpertCostMeter::Sets ExpertCostMeter::SetsOf(const ModelConfig& config, ExpertStore& store,
                                              const CardSlots& slots) {
  const int64_t most =
      std::min<int64_t>(store.cache().shape().num_slots, store.files().experts_per_layer());
  const int64_t wanted = kMeasuredBytes / store.files().run_bytes(store.files().layers().front());
  Sets sets;
  sets.k = std::min<int64_t>({config.router.num_experts_per_tok, slots.size(), most});
  sets.count = std::max<int64_t>(std::min(most, wanted) / sets.k, 1);
  return sets;
}

ExpertCostMeter::ExpertCostMeter(const ModelConfig& config, const Parts& parts)
    : config_(config),
      parts_(parts),
      sets_(SetsOf(config, parts.store, parts.slots)),
      k_(sets_.k) {}

absl::StatusOr<ExpertCosts> ExpertCostMeter::Measure() {
  const double begin = Now();
  Memory& memory = parts_.card.memory();
  const int64_t floats = parts_.max_rows * config_.hidden_size;
  // What the values are is no matter to the time.
  host_x_.assign(static_cast<size_t>(floats), 1.0f);
  CARAVAN_ASSIGN_OR_RETURN(x_, AllocateValues<float>(memory, floats));
  CARAVAN_ASSIGN_OR_RETURN(weights_, AllocateValues<float>(memory, parts_.max_rows * k_));
  CARAVAN_RETURN_IF_ERROR(
      memory.CopyIn(host_x_.data(), floats * static_cast<int64_t>(sizeof(float)), x_.data()));
  costs_ = {};
  CARAVAN_RETURN_IF_ERROR(TakeExperts());
  CARAVAN_RETURN_IF_ERROR(MeasureCopies());
  const double points_begin = Now();
  for (int64_t rows = 1;; rows *= 2) {
    const Choice choice = Uneven(rows);
    // Two points tell what a row more costs.
    const bool is_enough =
        costs_.points.size() > 1 && Now() - points_begin > absl::ToDoubleSeconds(kEnoughMeasured);
    if (choice.rows > parts_.max_rows || is_enough) break;
    CARAVAN_RETURN_IF_ERROR(
        MeasurePoint(choice, costs_.points.emplace_back(ExpertCosts::Point{.rows = rows,
                                                                           .cpu_seconds = 0,
                                                                           .cpu_beside_seconds = 0,
                                                                           .copy_beside_seconds = 0,
                                                                           .card_seconds = 0})));
  }
  CARAVAN_RETURN_IF_ERROR(MeasureSum());
  CARAVAN_RETURN_IF_ERROR(MeasureVisit());
  LogInfo("expert_costs_measured",
          {{"seconds", Now() - begin},
           {"rows", costs_.points.back().rows},
           {"copy_ms", 1e3 * costs_.copy_seconds},
           {"cpu_ms", 1e3 * costs_.points.front().cpu_seconds},
           {"cpu_beside_copies_ms", 1e3 * costs_.points.front().cpu_beside_seconds},
           {"card_ms", 1e3 * costs_.points.front().card_seconds}});
  return std::move(costs_);
}

ExpertCostMeter::Choice ExpertCostMeter::Uneven(int64_t rows) const {
  const auto rows_of = [&](int64_t expert) {
    return std::max<int64_t>((rows * (k_ + 2 * expert + 1) + k_) / (2 * k_), 1);
  };
  Choice choice;
  choice.rows = rows_of(k_ - 1);
  for (int64_t row = 0; row < choice.rows; ++row) {
    for (int64_t expert = 0; expert < k_; ++expert) {
      choice.ids.push_back(row < rows_of(expert) ? static_cast<int32_t>(expert) : kNotHere);
    }
  }
  choice.weights.assign(choice.ids.size(), 1.0f);
  return choice;
}

absl::Status ExpertCostMeter::TakeExperts() {
  const int layer = parts_.store.files().layers().front();
  std::vector<ExpertKey> keys;
  for (int32_t expert = 0; expert < sets_.count * k_; ++expert) keys.push_back({layer, expert});
  host_.clear();
  CARAVAN_RETURN_IF_ERROR(parts_.store.Read(
      keys, true,
      [&](ExpertKey key, const FfnWeights& weights) {
        host_.push_back({static_cast<int32_t>(key.expert % k_), weights});
        return absl::OkStatus();
      },
      [](int64_t, int64_t) { return true; }));
  on_card_.clear();
  for (int32_t id = 0; id < k_; ++id) {
    CARAVAN_RETURN_IF_ERROR(parts_.slots.Begin(HostExpert(static_cast<size_t>(id)), id));
    on_card_.push_back({id, parts_.slots.At(id)});
  }
  return parts_.slots.Wait();
}

absl::Status ExpertCostMeter::MeasureCopies() {
  const double begin = Now();
  for (size_t i = 0; i < host_.size(); ++i) {
    CARAVAN_RETURN_IF_ERROR(
        parts_.slots.Begin(HostExpert(i), static_cast<int>(static_cast<int64_t>(i) % k_)));
  }
  CARAVAN_RETURN_IF_ERROR(parts_.slots.Wait());
  costs_.copy_seconds = (Now() - begin) / static_cast<double>(host_.size());
  return absl::OkStatus();
}

absl::Status ExpertCostMeter::MeasurePoint(const Choice& choice, ExpertCosts::Point& point) {
  CARAVAN_RETURN_IF_ERROR(MeasureHost(choice, point));
  CARAVAN_ASSIGN_OR_RETURN(point.card_seconds, MeasureCard(choice));
  return absl::OkStatus();
}

absl::Status ExpertCostMeter::MeasureHost(const Choice& choice, ExpertCosts::Point& point) {
  const auto k = static_cast<size_t>(k_);
  const size_t sets = host_.size() / k;
  CARAVAN_RETURN_IF_ERROR(RunOnCpu(0, choice));  // finds everything ready
  std::vector<double> alone;                     // of a set
  std::vector<double> beside;                    // likewise
  std::vector<double> copies;                    // of one
  const double end = Now() + kMeasuredSeconds;
  // One after the other, so that what else the machine does meets both.
  for (size_t run = 0; run < kLeastRuns || (run < 2 * sets && Now() < end); ++run) {
    const double alone_begin = Now();
    CARAVAN_RETURN_IF_ERROR(RunOnCpu(2 * run, choice));
    const double taken = alone.emplace_back(Now() - alone_begin);

    const auto count =
        static_cast<size_t>(std::ceil(kOutlasting * taken / costs_.copy_seconds)) + 2;
    const double begin = Now();
    for (size_t i = 0; i < count; ++i) {
      // Of other sets than those before and after it.
      CARAVAN_RETURN_IF_ERROR(
          parts_.slots.Begin(HostExpert((2 * run + sets / 2) * k + i), static_cast<int>(i % k)));
    }
    CARAVAN_RETURN_IF_ERROR(RunOnCpu(2 * run + 1, choice));
    const double cpu_end = Now();
    CARAVAN_RETURN_IF_ERROR(parts_.slots.Wait());
    const double copied_since = (Now() - cpu_end) / costs_.copy_seconds;
    beside.push_back(cpu_end - begin);
    copies.push_back(beside.back() / std::max(static_cast<double>(count) - copied_since, 0.5));
  }
  // Company makes nobody faster.
  point.cpu_seconds = Median(std::move(alone)) / static_cast<double>(k_);
  point.cpu_beside_seconds =
      std::max(Median(std::move(beside)) / static_cast<double>(k_), point.cpu_seconds);
  point.copy_beside_seconds = std::max(Median(std::move(copies)), costs_.copy_seconds);
  return absl::OkStatus();
}

absl::StatusOr<double> ExpertCostMeter::MeasureCard(const Choice& choice) {
  CARAVAN_RETURN_IF_ERROR(parts_.card.memory().CopyIn(
      choice.ids.data(), static_cast<int64_t>(choice.ids.size() * sizeof(int32_t)),
      parts_.card_ids.data()));
  double begin = 0;
  for (int pass = 0; pass <= kRepeats; ++pass) {
    CARAVAN_RETURN_IF_ERROR(RunOnCard(on_card_, choice.rows, parts_.card_ids.as<int32_t>()));
    if (pass > 0) continue;
    CARAVAN_RETURN_IF_ERROR(WaitForCard());
    begin = Now();
  }
  CARAVAN_RETURN_IF_ERROR(WaitForCard());
  return (Now() - begin) / static_cast<double>(kRepeats * k_);
}

absl::Status ExpertCostMeter::MeasureSum() {
  std::vector<double> few;
  std::vector<double> all;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    for (const auto& [rows, taken] :
         {std::pair{int64_t{1}, &few}, std::pair{parts_.max_rows, &all}}) {
      const double begin = Now();
      CARAVAN_RETURN_IF_ERROR(SumToCard(rows));
      CARAVAN_RETURN_IF_ERROR(WaitForCard());
      taken->push_back(Now() - begin);
    }
  }
  const auto more = static_cast<double>(std::max<int64_t>(parts_.max_rows - 1, 1));
  costs_.visit_row_seconds = std::max(0.0, Median(all) - Median(few)) / more;
  return absl::OkStatus();
}

// A visit of one row, of whose experts half lie on the card: what it takes beyond the costs of the
// others.
absl::Status ExpertCostMeter::MeasureVisit() {
  const auto hits = static_cast<int32_t>(k_ / 2);
  const auto all = static_cast<int32_t>(k_);
  const std::vector<int64_t> rows(static_cast<size_t>(all - hits), 1);
  const double card = costs_.points.front().card_seconds;
  const ExpertSplit split = SplitExperts(costs_, rows, hits * card, all);
  const auto end_copied = static_cast<int32_t>(
      hits + std::count(split.places.begin(), split.places.end(), ExpertPlace::kCopy));
  const auto only = [&](int32_t first, int32_t end, std::vector<int32_t>& ids) {
    for (int32_t id = 0; id < all; ++id) ids.push_back(id >= first && id < end ? id : kNotHere);
  };
  Choice on_cpu = {.rows = 1, .ids = {}, .weights = std::vector<float>(static_cast<size_t>(k_), 1)};
  only(end_copied, all, on_cpu.ids);
  std::vector<int32_t> on_card;  // [2, 1, k]: what lies there, and what is copied
  only(0, hits, on_card);
  only(hits, end_copied, on_card);
  CARAVAN_RETURN_IF_ERROR(parts_.card.memory().CopyIn(
      on_card.data(), static_cast<int64_t>(on_card.size() * sizeof(int32_t)),
      parts_.card_ids.data()));
  const int32_t* const card_ids = parts_.card_ids.as<int32_t>();
  std::vector<double> taken;
  for (size_t repeat = 0; repeat < kRepeats; ++repeat) {
    for (const double end = Now() + kPauseSeconds; Now() < end;) {
      CARAVAN_RETURN_IF_ERROR(WaitForCard());
    }
    const double begin = Now();
    if (hits > 0) {
      CARAVAN_RETURN_IF_ERROR(RunOnCard({on_card_.begin(), on_card_.begin() + hits}, 1, card_ids));
    }
    std::vector<LoadedExpert> copied;
    for (int32_t id = hits; id < end_copied; ++id) {
      const size_t other_set = (repeat + 1) * static_cast<size_t>(k_);
      CARAVAN_RETURN_IF_ERROR(
          parts_.slots.Begin(HostExpert(other_set + static_cast<size_t>(id)), id));
      copied.push_back({id, parts_.slots.At(id)});
    }
    if (!copied.empty()) {
      CARAVAN_RETURN_IF_ERROR(parts_.slots.Precede());
      CARAVAN_RETURN_IF_ERROR(RunOnCard(std::move(copied), 1, card_ids + k_));
    }
    if (end_copied < all) CARAVAN_RETURN_IF_ERROR(RunOnCpu(repeat, on_cpu));
    CARAVAN_RETURN_IF_ERROR(SumToCard(1));
    CARAVAN_RETURN_IF_ERROR(parts_.slots.Wait());
    taken.push_back(Now() - begin);
  }
  CARAVAN_RETURN_IF_ERROR(WaitForCard());
  const SharedVisit visit = {
      .rows = 1,
      .cpu_rows = std::vector<int64_t>(static_cast<size_t>(all - end_copied), 1),
      .copies = end_copied - hits,
      .copied_card_seconds = (end_copied - hits) * card,
      .card_busy_seconds = hits * card};
  costs_.visit_seconds = std::max(0.0, Median(std::move(taken)) - ForetellSeconds(costs_, visit));
  return absl::OkStatus();
}

absl::Status ExpertCostMeter::RunOnCpu(size_t set, const Choice& choice) {
  const auto first =
      host_.begin() + static_cast<std::ptrdiff_t>(set * static_cast<size_t>(k_) % host_.size());
  ResidentExperts resident(std::vector<LoadedExpert>(first, first + k_));
  return parts_.cpu.RoutedExperts(resident, host_x_.data(), choice.rows, choice.ids.data(),
                                  choice.weights.data(), k_, parts_.host_sum.data());
}

absl::Status ExpertCostMeter::RunOnCard(std::vector<LoadedExpert> experts, int64_t rows,
                                        const int32_t* ids) {
  ResidentExperts resident(std::move(experts));
  return parts_.card.RoutedExperts(resident, x_.floats(), rows, ids, weights_.floats(), k_,
                                   parts_.card_sum.floats());
}

absl::Status ExpertCostMeter::SumToCard(int64_t rows) {
  const int64_t count = rows * config_.hidden_size;
  std::fill_n(parts_.host_sum.begin(), count, 0.0f);
  CARAVAN_RETURN_IF_ERROR(parts_.card.memory().CopyIn(
      parts_.host_sum.data(), count * static_cast<int64_t>(sizeof(float)), parts_.card_sum.data()));
  parts_.card.Add(parts_.card_sum.floats(), count, x_.floats());
  return absl::OkStatus();
}

absl::Status ExpertCostMeter::WaitForCard() {
  float done = 0;
  return parts_.card.memory().CopyOut(parts_.card_sum.data(), sizeof(done), &done);
}

}  // namespace caravan
