#include "worker/experts/synthetic_routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace caravan {

absl::Status SyntheticRouting::Check(const Options& options) {
  const auto wrong = [](absl::string_view name, const absl::AlphaNum& value,
                        const absl::AlphaNum& range) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", not ", range));
  };
  if (!(options.zipf >= 0 && options.zipf <= 10)) return wrong("zipf", options.zipf, "0 to 10");
  if (!(options.sticky >= 0 && options.sticky <= 1)) {
    return wrong("sticky", options.sticky, "0 to 1");
  }
  constexpr int kMax = 1 << 16;
  if (options.num_layers < 1 || options.num_layers > kMax) {
    return wrong("layers", options.num_layers, absl::StrCat("1 to ", kMax));
  }
  if (options.n_routed_experts < 1 || options.n_routed_experts > kMax) {
    return wrong("experts", options.n_routed_experts, absl::StrCat("1 to ", kMax));
  }
  if (options.num_experts_per_tok < 1 || options.num_experts_per_tok > options.n_routed_experts) {
    return wrong("k", options.num_experts_per_tok, absl::StrCat("1 to ", options.n_routed_experts));
  }
  if (options.num_sequences < 1 || options.num_sequences > kMax) {
    return wrong("rows", options.num_sequences, absl::StrCat("1 to ", kMax));
  }
  return absl::OkStatus();
}

SyntheticRouting::SyntheticRouting(const Options& options)
    : options_(options),
      generator_(options.seed),
      layers_(static_cast<size_t>(options.num_layers)),
      is_chosen_(static_cast<size_t>(options.n_routed_experts)),
      weights_(static_cast<size_t>(options.num_experts_per_tok)) {
  for (int rank = 1; rank <= options.n_routed_experts; ++rank) {
    probability_of_rank_.push_back(std::pow(rank, -options.zipf));
  }
  const double sum = std::accumulate(probability_of_rank_.begin(), probability_of_rank_.end(), 0.0);
  for (double& probability : probability_of_rank_) probability /= sum;
  for (Layer& layer : layers_) {
    layer.last.resize(static_cast<size_t>(options.num_sequences));
    layer.expert_of_rank.resize(is_chosen_.size());
    std::iota(layer.expert_of_rank.begin(), layer.expert_of_rank.end(), 0);
    // Not std::shuffle, which each library does in a way of its own.
    for (int i = options.n_routed_experts - 1; i > 0; --i) {
      std::swap(layer.expert_of_rank[static_cast<size_t>(i)],
                layer.expert_of_rank[static_cast<size_t>(Below(i + 1))]);
    }
  }
}

SyntheticRouting::Row SyntheticRouting::Next(int layer) {
  Layer& from = layers_[static_cast<size_t>(layer)];
  std::vector<int32_t>& last = from.last[from.sequence];
  from.sequence = (from.sequence + 1) % from.last.size();
  chosen_.clear();
  while (chosen_.size() < weights_.size()) {
    int32_t expert = -1;
    if (!last.empty() && Uniform() < options_.sticky) expert = DrawRepeated(last);
    if (expert < 0) expert = DrawByRank(from);
    is_chosen_[static_cast<size_t>(expert)] = 1;
    chosen_.push_back(expert);
  }
  for (const int32_t expert : chosen_) is_chosen_[static_cast<size_t>(expert)] = 0;
  std::sort(chosen_.begin(), chosen_.end());
  last = chosen_;
  float sum = 0;
  for (float& weight : weights_) sum += weight = 0.5f + static_cast<float>(Uniform());
  for (float& weight : weights_) weight /= sum;
  return {chosen_, weights_};
}

void SyntheticRouting::BeginTopic() {
  for (Layer& layer : layers_) {
    // A cycle through a random half: each of it gets another's rank.
    std::vector<int32_t> ranks(layer.expert_of_rank.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    const int half = options_.n_routed_experts / 2;
    for (int i = 0; i < half; ++i) {
      std::swap(ranks[static_cast<size_t>(i)],
                ranks[static_cast<size_t>(i + Below(options_.n_routed_experts - i))]);
    }
    for (int i = 1; i < half; ++i) {
      std::swap(layer.expert_of_rank[static_cast<size_t>(ranks[static_cast<size_t>(i - 1)])],
                layer.expert_of_rank[static_cast<size_t>(ranks[static_cast<size_t>(i)])]);
    }
  }
}

double SyntheticRouting::Uniform() {
  return static_cast<double>(generator_() >> 11) * 0x1p-53;  // as many bits as a double has
}

int SyntheticRouting::Below(int bound) { return static_cast<int>(Uniform() * bound); }

int32_t SyntheticRouting::DrawRepeated(const std::vector<int32_t>& last) {
  int left = 0;
  for (const int32_t expert : last) left += !is_chosen_[static_cast<size_t>(expert)];
  if (left == 0) return -1;
  int skip = Below(left);
  for (const int32_t expert : last) {
    if (!is_chosen_[static_cast<size_t>(expert)] && skip-- == 0) return expert;
  }
  return -1;
}

int32_t SyntheticRouting::DrawByRank(const Layer& layer) {
  double left = 1;
  for (size_t rank = 0; rank < probability_of_rank_.size(); ++rank) {
    if (is_chosen_[static_cast<size_t>(layer.expert_of_rank[rank])]) {
      left -= probability_of_rank_[rank];
    }
  }
  double at = Uniform() * left;
  int32_t expert = -1;
  for (size_t rank = 0; rank < probability_of_rank_.size(); ++rank) {
    if (is_chosen_[static_cast<size_t>(layer.expert_of_rank[rank])]) continue;
    expert = layer.expert_of_rank[rank];
    at -= probability_of_rank_[rank];
    if (at < 0) break;
  }
  return expert;  // the last one that is left, should rounding lead past it
}

}  // namespace caravan
