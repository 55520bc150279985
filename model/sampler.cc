#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

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
double Uniform(uint64_t seed, int64_t position) {
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

/// Logarithm of the sum of exp(BelowBest).
double LogSum(const Logits& logits) {
  double sum = 0;
  for (int32_t id = 0; id < logits.size(); ++id) sum += std::exp(logits.BelowBest(id));
  return std::log(sum);
}

/// The `count` highest-ranking, best first.
std::vector<int32_t> Best(const Logits& logits, size_t count) {
  std::vector<int32_t> best;
  if (count == 0) return best;
  const auto before = [&](int32_t a, int32_t b) { return logits.Before(a, b); };
  // Few of a long vocabulary ever pass the last one that is kept.
  for (int32_t id = 0; id < logits.size(); ++id) {
    if (best.size() == count) {
      if (!logits.Before(id, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::upper_bound(best.begin(), best.end(), id, before), id);
  }
  return best;
}

bool HasPenalties(const v1::SamplingParams& params) {
  return params.frequency_penalty() != 0 || params.presence_penalty() != 0 ||
         (params.repetition_penalty() != 0 && params.repetition_penalty() != 1);
}

/// What the draw sees of the logits: biases are added, then what repeats is made less likely.
std::vector<float> Adjusted(absl::Span<const float> logits, const v1::SamplingParams& params,
                            const v1::SamplingHistory& history) {
  std::vector<float> adjusted(logits.begin(), logits.end());
  for (const v1::LogitBias& bias : params.logit_biases()) {
    adjusted[bias.token_id()] += bias.bias();
  }
  if (!HasPenalties(params)) return adjusted;
  absl::flat_hash_map<uint32_t, int> uses_in_reply;  // of every token that prompt or reply has
  for (const uint32_t id : history.prompt_token_ids()) uses_in_reply.try_emplace(id, 0);
  for (const uint32_t id : history.reply_token_ids()) ++uses_in_reply[id];
  const float repetition = params.repetition_penalty() == 0 ? 1 : params.repetition_penalty();
  for (const auto& [id, uses] : uses_in_reply) {
    float& logit = adjusted[id];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (uses == 0) continue;
    logit -= static_cast<float>(uses) * params.frequency_penalty() + params.presence_penalty();
  }
  return adjusted;
}

struct Candidate {
  int32_t id = 0;
  double weight = 0;  // its probability / that of the likeliest
};

double TotalWeight(const std::vector<Candidate>& candidates) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [](double sum, const Candidate& each) { return sum + each.weight; });
}

/// All of the vocabulary, or the `top_k` likeliest.
std::vector<Candidate> TopK(const Logits& logits, uint32_t top_k, double temperature) {
  std::vector<int32_t> ids(static_cast<size_t>(logits.size()));
  std::iota(ids.begin(), ids.end(), 0);
  if (top_k > 0 && top_k < ids.size()) {
    std::partial_sort(ids.begin(), ids.begin() + top_k, ids.end(),
                      [&](int32_t a, int32_t b) { return logits.Before(a, b); });
    ids.resize(top_k);
  }
  std::vector<Candidate> candidates;
  candidates.reserve(ids.size());
  for (const int32_t id : ids) {
    candidates.push_back({id, std::exp(logits.BelowBest(id) / temperature)});
  }
  return candidates;
}

/// The fewest likeliest that reach `top_p` of the whole.
void KeepNucleus(const Logits& logits, double top_p, std::vector<Candidate>& candidates) {
  const double total = TotalWeight(candidates);
  const double wanted = total * top_p;
  // All that weigh less than an even share of the rest weigh less than the rest together, so the
  // others reach what is wanted: they are few, and only they need be sorted.
  const double least = (total - wanted) / static_cast<double>(candidates.size());
  std::erase_if(candidates, [&](const Candidate& each) { return each.weight < least; });
  std::sort(candidates.begin(), candidates.end(),
            [&](const Candidate& a, const Candidate& b) { return logits.Before(a.id, b.id); });
  double reached = 0;
  const auto end = std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& each) {
    if (reached >= wanted) return true;
    reached += each.weight;
    return false;
  });
  candidates.erase(end, candidates.end());
}

/// By temperature, top_k, top_p and min_p.
int32_t Draw(const Logits& logits, const v1::SamplingParams& params, int64_t position) {
  if (params.temperature() == 0) return logits.best();
  std::vector<Candidate> kept = TopK(logits, params.top_k(), params.temperature());
  if (params.top_p() > 0 && params.top_p() < 1) KeepNucleus(logits, params.top_p(), kept);
  // The likeliest one's weight is 1, so it stays.
  std::erase_if(kept, [&](const Candidate& each) { return each.weight < params.min_p(); });
  const double target = Uniform(params.seed(), position) * TotalWeight(kept);
  double reached = 0;
  for (const Candidate& each : kept) {
    reached += each.weight;
    if (reached > target) return each.id;
  }
  return logits.best();  // Not reached: `reached` ends at the total, which is above `target`.
}

/// Written so that NaN fails.
absl::Status CheckRange(absl::string_view name, double value, double least, double most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": must be from ", least, " to ", most, ", is ", value));
}

absl::Status CheckLogitBiases(const v1::SamplingParams& params, std::optional<int64_t> vocab_size) {
  if (params.logit_biases_size() > kMaxLogitBiases) {
    return absl::InvalidArgumentError(absl::StrCat("logit_bias: must name at most ",
                                                   kMaxLogitBiases, " tokens, names ",
                                                   params.logit_biases_size()));
  }
  absl::flat_hash_set<uint32_t> seen;
  for (const v1::LogitBias& bias : params.logit_biases()) {
    CARAVAN_RETURN_IF_ERROR(
        CheckRange(absl::StrCat("logit_bias of token ", bias.token_id()), bias.bias(), -100, 100));
    if (vocab_size.has_value() && bias.token_id() >= *vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "logit_bias: token ", bias.token_id(), " is outside the vocabulary of ", *vocab_size));
    }
    if (!seen.insert(bias.token_id()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias: names token ", bias.token_id(), " twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSamplingParams(const v1::SamplingParams& params,
                                 std::optional<int64_t> vocab_size) {
  CARAVAN_RETURN_IF_ERROR(CheckRange("temperature", params.temperature(), 0, 100));
  CARAVAN_RETURN_IF_ERROR(CheckRange("top_p", params.top_p(), 0, 1));
  CARAVAN_RETURN_IF_ERROR(CheckRange("min_p", params.min_p(), 0, 1));
  CARAVAN_RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty(), -2, 2));
  CARAVAN_RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty(), -2, 2));
  CARAVAN_RETURN_IF_ERROR(CheckRange("repetition_penalty", params.repetition_penalty(), 0, 100));
  CARAVAN_RETURN_IF_ERROR(
      CheckRange("num_alternatives", params.num_alternatives(), 0, kMaxAlternatives));
  return CheckLogitBiases(params, vocab_size);
}

int32_t DrawToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                  const v1::SamplingHistory& history, int64_t position) {
  CARAVAN_CHECK(!logits.empty());
  if (HasPenalties(params) || !params.logit_biases().empty()) {
    return Draw(Logits(Adjusted(logits, params, history)), params, position);
  }
  return Draw(Logits(logits), params, position);
}

ScoredToken ScoreToken(absl::Span<const float> logits, int32_t token_id, int num_alternatives) {
  CARAVAN_CHECK(token_id >= 0 && static_cast<size_t>(token_id) < logits.size());
  const Logits ranked(logits);
  const double log_sum = LogSum(ranked);
  const auto log_probability = [&](int32_t id) {
    return static_cast<float>(ranked.BelowBest(id) - log_sum);
  };
  ScoredToken scored;
  scored.token_id = token_id;
  scored.log_probability = log_probability(token_id);
  for (const int32_t id : Best(ranked, static_cast<size_t>(num_alternatives))) {
    scored.alternatives.push_back({id, log_probability(id)});
  }
  return scored;
}

ScoredToken SampleToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                        const v1::SamplingHistory& history, int64_t position) {
  return ScoreToken(logits, DrawToken(logits, params, history, position),
                    static_cast<int>(params.num_alternatives()));
}

}  // namespace caravan
