#include "worker/experts/cache_replay.h"

#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <utility>

namespace caravan {
namespace {

constexpr size_t kNever = std::numeric_limits<size_t>::max();

}  // namespace

CacheReplay::CacheReplay(const ExpertCache::Shape& shape)
    : shape_(shape), by_expert_(static_cast<size_t>(shape.experts_per_layer)) {}

void CacheReplay::OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                            absl::Span<const float> weights) {
  Visit visit = {0, num_rows, layer, uses_.size()};
  if (!visits_.empty()) {
    visit.step = visits_.back().step + (layer <= visits_.back().layer ? 1 : 0);
  }
  visits_.push_back(visit);
  for (size_t i = 0; i < expert_ids.size(); ++i) {
    Use& use = by_expert_[static_cast<size_t>(expert_ids[i])];
    ++use.rows;
    use.weight += weights[i];
  }
  for (size_t expert = 0; expert < by_expert_.size(); ++expert) {
    Use& use = by_expert_[expert];
    if (use.rows == 0) continue;
    uses_.push_back({static_cast<int32_t>(expert), use.rows, use.weight});
    use = {};
  }
}

CacheReplay::Result CacheReplay::Run(ExpertCache& cache) const {
  Result result;
  std::vector<int> held;
  std::vector<std::pair<ExpertKey, double>> missing;  // with the score for Take
  for (size_t v = 0; v < visits_.size(); ++v) {
    const Visit& visit = visits_[v];
    held.clear();
    missing.clear();
    cache.BeginVisit(visit.step, static_cast<int>(UsesOf(v).size()));
    for (const Use& use : UsesOf(v)) {
      const ExpertKey key = {visit.layer, use.expert};
      const double score = cache.Use(key, {visit.step, use.rows, use.weight});
      if (const std::optional<int> slot = cache.Find(key)) {
        cache.Hold(*slot);
        held.push_back(*slot);
      } else {
        missing.emplace_back(key, score);
      }
    }
    Counts& counts = CountVisit(visit, result);
    counts.hits += static_cast<int64_t>(held.size());
    counts.uses += static_cast<int64_t>(held.size() + missing.size());
    for (const auto& [key, score] : missing) {
      const std::optional<int> slot = cache.Take(key, score);
      if (slot.has_value()) held.push_back(*slot);
    }
    for (const int slot : held) cache.Release(slot);
  }
  return result;
}

CacheReplay::Result CacheReplay::RunOptimum(int num_slots) const {
  // For each use the visit that uses the same expert next; an expert's visits are its layer's.
  const size_t experts = static_cast<size_t>(shape_.experts_per_layer);
  const auto index_of = [&](const Visit& visit, const Use& use) {
    return static_cast<size_t>(visit.layer - shape_.first_layer) * experts +
           static_cast<size_t>(use.expert);
  };
  std::vector<size_t> next_visit(uses_.size());
  std::vector<size_t> upcoming(static_cast<size_t>(shape_.num_layers) * experts, kNever);
  for (size_t v = visits_.size(); v-- > 0;) {
    size_t at = visits_[v].uses_begin;
    for (const Use& use : UsesOf(v)) {
      next_visit[at++] = std::exchange(upcoming[index_of(visits_[v], use)], v);
    }
  }
  Result result;
  // What is in memory, by when it is used next. Who stays is settled when a visit has seen all that
  // it hits: some of that may never be used again.
  std::set<std::pair<size_t, size_t>> kept;
  for (size_t v = 0; v < visits_.size(); ++v) {
    size_t at = visits_[v].uses_begin;
    Counts& counts = CountVisit(visits_[v], result);
    for (const Use& use : UsesOf(v)) {
      const size_t index = index_of(visits_[v], use);
      const size_t next = next_visit[at++];
      ++counts.uses;
      counts.hits += static_cast<int64_t>(kept.erase({v, index}));
      if (next != kNever) kept.emplace(next, index);
    }
    while (static_cast<int>(kept.size()) > num_slots) kept.erase(std::prev(kept.end()));
  }
  return result;
}

absl::Span<const CacheReplay::Use> CacheReplay::UsesOf(size_t visit) const {
  const size_t begin = visits_[visit].uses_begin;
  const size_t end = visit + 1 < visits_.size() ? visits_[visit + 1].uses_begin : uses_.size();
  return absl::MakeConstSpan(uses_).subspan(begin, end - begin);
}

CacheReplay::Counts& CacheReplay::CountVisit(const Visit& visit, Result& result) const {
  Counts& counts = visit.rows > kMaxDecodeRows ? result.prompt : result.decode;
  if (visit.layer == shape_.first_layer) counts.tokens += visit.rows;
  return counts;
}

}  // namespace caravan
