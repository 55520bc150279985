#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
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

/// A logit as the sampler sees it: NaN is never preferred.
float Seen(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

/// How far below the largest, <= 0. Infinite logits need no case of their own in what follows:
/// those that equal the largest are 0 below it, whatever it is.
double Below(float logit, float largest) {
  return logit == largest ? 0 : static_cast<double>(logit) - static_cast<double>(largest);
}

struct Candidate {
  int32_t id = 0;
  float logit = 0;    // Seen
  double weight = 0;  // its probability / that of the likeliest
};

/// A strict total order.
bool RanksAbove(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

bool HasLowerId(const Candidate& a, const Candidate& b) { return a.id < b.id; }

Candidate CandidateAt(absl::Span<const float> logits, size_t id) {
  return {static_cast<int32_t>(id), Seen(logits[id])};
}

/// The `count` highest-ranking of all, best first.
std::vector<Candidate> Best(absl::Span<const float> logits, size_t count) {
  std::vector<Candidate> best;
  if (count == 0) return best;
  // Few of a long vocabulary ever pass the last one that is kept.
  for (size_t id = 0; id < logits.size(); ++id) {
    const Candidate each = CandidateAt(logits, id);
    if (best.size() == count) {
      if (!RanksAbove(each, best.back())) continue;
      best.pop_back();
    }
    best.insert(std::upper_bound(best.begin(), best.end(), each, RanksAbove), each);
  }
  return best;
}

bool HasPenalties(const v1::SamplingParams& params) {
  return params.frequency_penalty() != 0 || params.presence_penalty() != 0 ||
         (params.repetition_penalty() != 0 && params.repetition_penalty() != 1);
}

/// What the draw sees of the logits: biases are added, then what repeats is made less likely.
class Adjustments {
 public:
  Adjustments(const v1::SamplingParams& params, const v1::SamplingHistory& history)
      : params_(params),
        repetition_(params.repetition_penalty() == 0 ? 1 : params.repetition_penalty()) {
    for (const v1::LogitBias& bias : params.logit_biases()) {
      changes_[static_cast<int32_t>(bias.token_id())].bias = bias.bias();
    }
    if (!HasPenalties(params)) return;
    for (const uint32_t id : history.prompt_token_ids()) InHistory(id);
    for (const uint32_t id : history.reply_token_ids()) ++InHistory(id).uses_in_reply;
  }

  /// Of a token's logit. Never falls as the logit grows.
  float Adjusted(int32_t id, float logit) const {
    const auto found = changes_.find(id);
    return found == changes_.end() ? logit : Adjusted(found->second, logit);
  }

  /// The same, in place, of all logits.
  void Adjust(absl::Span<float> logits) const {
    for (const auto& [id, change] : changes_) {
      logits[static_cast<size_t>(id)] = Adjusted(change, logits[static_cast<size_t>(id)]);
    }
  }

  bool empty() const { return changes_.empty(); }

  /// For each token whose logit is changed: visit(id, whether it may come to be larger).
  void Visit(absl::FunctionRef<void(int32_t id, bool may_grow)> visit) const {
    for (const auto& [id, change] : changes_) {
      visit(id,
            change.bias > 0 || (change.is_in_history && (repetition_ < 1 || Penalty(change) < 0)));
    }
  }

 private:
  struct Change {
    float bias = 0;
    bool is_in_history = false;
    int uses_in_reply = 0;
  };

  Change& InHistory(uint32_t id) {
    Change& change = changes_[static_cast<int32_t>(id)];
    change.is_in_history = true;
    return change;
  }

  float Penalty(const Change& change) const {
    if (change.uses_in_reply == 0) return 0;
    return static_cast<float>(change.uses_in_reply) * params_.frequency_penalty() +
           params_.presence_penalty();
  }

  float Adjusted(const Change& change, float logit) const {
    logit += change.bias;
    if (!change.is_in_history) return logit;
    logit = logit > 0 ? logit / repetition_ : logit * repetition_;
    return logit - Penalty(change);
  }

  const v1::SamplingParams& params_;
  const float repetition_;
  absl::flat_hash_map<int32_t, Change> changes_;
};

double TotalWeight(const std::vector<Candidate>& candidates) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [](double sum, const Candidate& each) { return sum + each.weight; });
}

void Weigh(float largest, double temperature, std::vector<Candidate>& candidates) {
  for (Candidate& each : candidates) {
    each.weight = std::exp(Below(each.logit, largest) / temperature);
  }
}

/// What a draw chooses from.
struct Field {
  std::vector<Candidate> known;  // all, by ascending ids; where there are others, by rank
  // The rest of the vocabulary, all of which rank below those. All that is known of them is what
  // they weigh together, as far as top_k keeps them.
  size_t num_others = 0;
  double others_weight = 0;
};

/// The fewest likeliest that reach `top_p` of the whole. False: that takes others, too.
bool KeepNucleus(double top_p, Field& field) {
  std::vector<Candidate>& known = field.known;
  const double total = TotalWeight(known) + field.others_weight;
  const double wanted = total * top_p;
  // All that weigh less than an even share of the rest weigh less than the rest together, so the
  // others reach what is wanted: they are few, and only they need be sorted.
  const double least = (total - wanted - field.others_weight) / static_cast<double>(known.size());
  std::erase_if(known, [&](const Candidate& each) { return each.weight < least; });
  std::sort(known.begin(), known.end(), RanksAbove);
  double reached = 0;
  const auto end = std::find_if(known.begin(), known.end(), [&](const Candidate& each) {
    if (reached >= wanted) return true;
    reached += each.weight;
    return false;
  });
  if (!(reached >= wanted) && field.num_others > 0) return false;
  known.erase(end, known.end());
  field.num_others = 0;
  return true;
}

bool CutsTopK(const v1::SamplingParams& params, size_t vocab_size) {
  return params.top_k() > 0 && params.top_k() < vocab_size;
}

bool CutsTopP(const v1::SamplingParams& params) { return params.top_p() > 0 && params.top_p() < 1; }

/// By temperature, top_k, top_p and min_p, of the field's tokens; `best` ranks highest. Nothing
/// where it takes more than is known of the others. REQUIRES: temperature > 0.
std::optional<int32_t> Draw(Field field, const Candidate& best, const v1::SamplingParams& params,
                            int64_t position) {
  std::vector<Candidate>& kept = field.known;
  const bool is_by_id = field.num_others == 0;
  bool draws_by_rank = false;
  if (CutsTopK(params, kept.size() + field.num_others)) {
    draws_by_rank = true;
    if (params.top_k() <= kept.size()) {
      std::partial_sort(kept.begin(), kept.begin() + params.top_k(), kept.end(), RanksAbove);
      kept.resize(params.top_k());
      field.num_others = 0;
      field.others_weight = 0;
    }
  }
  Weigh(best.logit, params.temperature(), kept);
  if (CutsTopP(params)) {
    draws_by_rank = true;
    if (!KeepNucleus(params.top_p(), field)) return std::nullopt;
  }
  // No other weighs more than the last that is known.
  if (field.num_others > 0 && kept.back().weight >= params.min_p()) return std::nullopt;
  // The likeliest one's weight is 1, so it stays.
  std::erase_if(kept, [&](const Candidate& each) { return each.weight < params.min_p(); });
  if (!draws_by_rank && !is_by_id) {
    std::sort(kept.begin(), kept.end(), HasLowerId);
  }
  const double target = Uniform(params.seed(), position) * TotalWeight(kept);
  double reached = 0;
  for (const Candidate& each : kept) {
    reached += each.weight;
    if (reached > target) return each.id;
  }
  return best.id;  // Not reached: `reached` ends at the total, which is above `target`.
}

/// What a summary leaves open, its tokens adjusted.
struct OpenField {
  Field field;  // its others weigh at least that, below the best
  double most_others = 0;
  Candidate best;
};

/// REQUIRES: the summary has not the whole vocabulary. Nothing where no token surely ranks above
/// all others.
std::optional<OpenField> FieldOf(const LogitSummary& summary, const Adjustments& adjustments,
                                 double temperature) {
  std::vector<Candidate> known;
  absl::flat_hash_set<int32_t> ids;
  for (int i = 0; i < kSummaryCandidates; ++i) {
    known.push_back({summary.ids[i], summary.logits[i]});
    ids.insert(summary.ids[i]);
  }
  const float largest = known[0].logit;
  const float last = known.back().logit;
  Weigh(largest, temperature, known);
  const double error = WeightSumError(summary.vocab_size);
  double least = summary.weight * (1 - error) - TotalWeight(known);
  double most = std::max(summary.weight * (1 + error) - TotalWeight(known), 0.0);

  // The others are `last` at most, and what is made of that.
  float highest = last;
  std::vector<Candidate> grown;
  adjustments.Visit([&](int32_t id, bool may_grow) {
    if (ids.contains(id)) return;
    least = 0;
    const Candidate bound = {id, Seen(adjustments.Adjusted(id, last))};
    highest = std::max(highest, bound.logit);
    if (may_grow) grown.push_back(bound);
  });
  for (Candidate& each : known) each.logit = Seen(adjustments.Adjusted(each.id, each.logit));
  std::sort(known.begin(), known.end(), RanksAbove);
  std::vector<Candidate> unsure;
  while (!adjustments.empty() && !known.empty() && known.back().logit <= highest) {
    unsure.push_back(known.back());
    known.pop_back();
  }
  if (known.empty()) return std::nullopt;

  OpenField open;
  open.best = known[0];
  const double scale = std::exp(Below(largest, open.best.logit) / temperature);
  for (std::vector<Candidate>* const tokens : {&known, &unsure, &grown}) {
    Weigh(open.best.logit, temperature, *tokens);
  }
  least = least * scale + TotalWeight(unsure);
  most = most * scale + TotalWeight(unsure) + TotalWeight(grown);
  // All logits' sum is rounded, too.
  const double rounding = error * (TotalWeight(known) + most);
  open.most_others = most + rounding;
  open.field.num_others =
      static_cast<size_t>(summary.vocab_size) - kSummaryCandidates + unsure.size();
  open.field.others_weight = std::max(least - rounding, 0.0);
  open.field.known = std::move(known);
  return open;
}

/// The more the others weigh, the longer is the nucleus and the further lies the target in it: so
/// what is drawn for the least and for the most is drawn for all between.
std::optional<int32_t> DrawFromOpen(OpenField open, const v1::SamplingParams& params,
                                    int64_t position) {
  Field& field = open.field;
  const size_t vocab_size = field.known.size() + field.num_others;
  if (CutsTopK(params, vocab_size) && params.top_k() > field.known.size()) {
    field.others_weight = 0;  // of those that top_k keeps
  }
  const std::optional<int32_t> first = Draw(field, open.best, params, position);
  field.others_weight = open.most_others;
  const std::optional<int32_t> last = Draw(std::move(field), open.best, params, position);
  return first == last ? first : std::nullopt;
}

/// Whether nothing is changed and nothing cut, so that the draw goes through the whole vocabulary.
bool DrawsFromAll(const v1::SamplingParams& params) {
  return params.temperature() > 0 && !CutsTopP(params) && params.min_p() == 0 &&
         !HasPenalties(params) && params.logit_biases().empty();
}

/// The token that the summary tells as drawn, unless sums in another order might pass the target
/// elsewhere.
std::optional<int32_t> DrawnFromAll(const LogitSummary& summary, const v1::SamplingParams& params,
                                    int64_t position) {
  const double target = Uniform(params.seed(), position) * summary.weight;
  const double doubt = 2 * WeightSumError(summary.vocab_size) * summary.weight;
  if (summary.drawn_id < 0 || !(target - summary.before_drawn > doubt) ||
      !(summary.through_drawn - target > doubt)) {
    return std::nullopt;
  }
  return summary.drawn_id;
}

/// Log-probabilities under a softmax.
class LogSoftmax {
 public:
  /// sum: of exp(logit - largest).
  LogSoftmax(float largest, double sum) : largest_(largest), log_sum_(std::log(sum)) {}
  float Of(float logit) const { return static_cast<float>(Below(logit, largest_) - log_sum_); }

 private:
  const float largest_;
  const double log_sum_;
};

float LogitOf(const LogitSummary& summary, int32_t token_id) {
  for (int i = 0; i < summary.num_candidates(); ++i) {
    if (summary.ids[i] == token_id) return summary.logits[i];
  }
  return token_id == summary.drawn_id ? summary.drawn_logit : summary.token_logit;
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
  std::vector<float> adjusted;
  const Adjustments adjustments(params, history);
  if (!adjustments.empty()) {
    adjusted.assign(logits.begin(), logits.end());
    adjustments.Adjust(absl::MakeSpan(adjusted));
    logits = adjusted;
  }
  const Candidate best = Best(logits, 1)[0];
  if (params.temperature() == 0) return best.id;
  Field all;
  all.known.reserve(logits.size());
  for (size_t id = 0; id < logits.size(); ++id) all.known.push_back(CandidateAt(logits, id));
  return *Draw(std::move(all), best, params, position);
}

ScoredToken ScoreToken(absl::Span<const float> logits, int32_t token_id, int num_alternatives) {
  CARAVAN_CHECK(token_id >= 0 && static_cast<size_t>(token_id) < logits.size());
  const std::vector<Candidate> best =
      Best(logits, static_cast<size_t>(std::max(num_alternatives, 1)));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(Below(Seen(logit), best[0].logit));
  const LogSoftmax softmax(best[0].logit, sum);
  ScoredToken scored;
  scored.token_id = token_id;
  scored.log_probability = softmax.Of(Seen(logits[static_cast<size_t>(token_id)]));
  for (const Candidate& each : best) {
    if (std::ssize(scored.alternatives) == num_alternatives) break;
    scored.alternatives.push_back({each.id, softmax.Of(each.logit)});
  }
  return scored;
}

ScoredToken SampleToken(absl::Span<const float> logits, const v1::SamplingParams& params,
                        const v1::SamplingHistory& history, int64_t position) {
  return ScoreToken(logits, DrawToken(logits, params, history, position),
                    static_cast<int>(params.num_alternatives()));
}

LogitQuestion QuestionFor(const v1::SamplingParams& params, int64_t position) {
  LogitQuestion question;
  if (params.temperature() == 0) return question;
  question.temperature = params.temperature();
  if (DrawsFromAll(params) && !CutsTopK(params, kSummaryCandidates + 1)) {
    question.quantile = Uniform(params.seed(), position);
  }
  return question;
}

std::optional<int32_t> DrawToken(const LogitSummary& summary, const v1::SamplingParams& params,
                                 const v1::SamplingHistory& history, int64_t position) {
  const auto vocab_size = static_cast<size_t>(summary.vocab_size);
  if (vocab_size <= kSummaryCandidates) {
    std::vector<float> logits(vocab_size);
    for (size_t i = 0; i < vocab_size; ++i) {
      logits[static_cast<size_t>(summary.ids[i])] = summary.logits[i];
    }
    return DrawToken(logits, params, history, position);
  }
  if (DrawsFromAll(params) && !CutsTopK(params, vocab_size)) {
    return DrawnFromAll(summary, params, position);
  }
  const bool is_greedy = params.temperature() == 0;
  std::optional<OpenField> open =
      FieldOf(summary, Adjustments(params, history), is_greedy ? 1 : params.temperature());
  if (!open.has_value()) return std::nullopt;
  if (is_greedy) return open->best.id;
  return DrawFromOpen(*std::move(open), params, position);
}

ScoredToken ScoreToken(const LogitSummary& summary, int32_t token_id, int num_alternatives) {
  const LogSoftmax softmax(summary.logits[0], summary.sum);
  ScoredToken scored;
  scored.token_id = token_id;
  scored.log_probability = softmax.Of(LogitOf(summary, token_id));
  for (int i = 0; i < std::min(num_alternatives, summary.num_candidates()); ++i) {
    scored.alternatives.push_back({summary.ids[i], softmax.Of(summary.logits[i])});
  }
  return scored;
}

std::optional<ScoredToken> SampleToken(const LogitSummary& summary,
                                       const v1::SamplingParams& params,
                                       const v1::SamplingHistory& history, int64_t position) {
  const std::optional<int32_t> drawn = DrawToken(summary, params, history, position);
  if (!drawn.has_value()) return std::nullopt;
  return ScoreToken(summary, *drawn, static_cast<int>(params.num_alternatives()));
}

}  // namespace caravan
