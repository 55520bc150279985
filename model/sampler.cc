#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace caravan {
namespace {

/// The finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014).
uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// Uniform in [0, 1): output `position` of the splitmix64 sequence that starts at the seed's hash.
double Draw(uint64_t seed, int64_t position) {
  const uint64_t step = 0x9e3779b97f4a7c15;
  const uint64_t bits = Mix(Mix(seed) + (static_cast<uint64_t>(position) + 1) * step);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// Logits as the sampler sees them: NaN counts as -inf, so that it is never preferred.
class Logits {
 public:
  explicit Logits(absl::Span<const float> values) : values_(values) {
    for (int32_t id = 1; id < size(); ++id) {
      if (Before(id, best_)) best_ = id;
    }
  }

  int32_t size() const { return static_cast<int32_t>(values_.size()); }
  int32_t best() const { return best_; }

  /// Whether `a` ranks above `b`: a strict total order.
  bool Before(int32_t a, int32_t b) const {
    const double x = At(a);
    const double y = At(b);
    return x > y || (x == y && a < b);
  }

  /// How far below the largest, <= 0. Infinite logits need no case of their own in what follows:
  /// those that equal the largest are 0 below it, whatever it is.
  double BelowBest(int32_t id) const {
    const double logit = At(id);
    const double best = At(best_);
    return logit == best ? 0 : logit - best;
  }

 private:
  double At(int32_t id) const {
    const float logit = values_[static_cast<size_t>(id)];
    return std::isnan(logit) ? -std::numeric_limits<double>::infinity() : logit;
  }

  const absl::Span<const float> values_;
  int32_t best_ = 0;
};

float LogProbability(const Logits& logits, int32_t token) {
  double sum = 0;
  for (int32_t id = 0; id < logits.size(); ++id) sum += std::exp(logits.BelowBest(id));
  return static_cast<float>(logits.BelowBest(token) - std::log(sum));
}

/// The token, by temperature, top_k and top_p. REQUIRES: temperature > 0.
int32_t DrawToken(const Logits& logits, const v1::SamplingParams& params, int64_t position) {
  const double temperature = params.temperature();
  const auto weight = [&](int32_t id) { return std::exp(logits.BelowBest(id) / temperature); };
  const auto before = [&](int32_t a, int32_t b) { return logits.Before(a, b); };
  const auto add_weight = [&](double sum, int32_t id) { return sum + weight(id); };

  std::vector<int32_t> kept(static_cast<size_t>(logits.size()));
  std::iota(kept.begin(), kept.end(), 0);
  if (params.top_k() > 0 && params.top_k() < kept.size()) {
    std::partial_sort(kept.begin(), kept.begin() + params.top_k(), kept.end(), before);
    kept.resize(params.top_k());
  }
  double total = std::accumulate(kept.begin(), kept.end(), 0.0, add_weight);
  if (params.top_p() > 0 && params.top_p() < 1) {
    // A heap hands out the likeliest first, and most of the vocabulary is never sorted.
    const auto after = [&](int32_t a, int32_t b) { return logits.Before(b, a); };
    std::make_heap(kept.begin(), kept.end(), after);
    const double wanted = total * params.top_p();
    auto heap_end = kept.end();
    for (total = 0; total < wanted && heap_end != kept.begin(); --heap_end) {
      total += weight(kept.front());
      std::pop_heap(kept.begin(), heap_end, after);
    }
    kept.erase(kept.begin(), heap_end);  // The nucleus lies behind the heap, likeliest last.
    total = std::accumulate(kept.begin(), kept.end(), 0.0, add_weight);
  }
  const double target = Draw(params.seed(), position) * total;
  double reached = 0;
  for (const int32_t id : kept) {
    reached += weight(id);
    if (reached > target) return id;
  }
  return logits.best();  // Not reached: `reached` ends at `total`, which is above `target`.
}

}  // namespace

absl::Status CheckSamplingParams(const v1::SamplingParams& params) {
  // Written so that NaN fails.
  if (!(params.temperature() >= 0 && params.temperature() <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature: must be from 0 to 100, is ", params.temperature()));
  }
  if (!(params.top_p() >= 0 && params.top_p() <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p: must be from 0 to 1, is ", params.top_p()));
  }
  return absl::OkStatus();
}

ScoredToken SampleToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                        int64_t position) {
  CARAVAN_CHECK(!logits.empty());
  const Logits ranked(logits);
  ScoredToken sampled;
  sampled.token_id = params.temperature() > 0 ? DrawToken(ranked, params, position) : ranked.best();
  sampled.log_probability = LogProbability(ranked, sampled.token_id);
  return sampled;
}

}  // namespace caravan
