#include "worker/experts/cache_policy.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace caravan {
namespace {

// The least that a use counts, so that a score stays finite.
constexpr double kLeastAmount = 1e-6;

class LastUsePolicy : public CachePolicy {
 public:
  absl::string_view name() const override { return "lru"; }
  double AfterUse(double, const ExpertUse& use) const override {
    return static_cast<double>(use.step);
  }
};

/// A use of `amount` at step s is worth amount * 2^((s - now) / half-life). Instead of the sum of
/// these, which would change with every step, the score is log2 of the sum as it was at step 0: at
/// any step all such sums differ from it by the same factor.
class DecayedSumPolicy : public CachePolicy {
 public:
  explicit DecayedSumPolicy(double half_life_steps) : half_life_steps_(half_life_steps) {}
  double AfterUse(double score, const ExpertUse& use) const override {
    const double added = static_cast<double>(use.step) / half_life_steps_ +
                         std::log2(std::max(kLeastAmount, Amount(use)));
    const auto [less, more] = std::minmax(score, added);
    return more + std::log2(1 + std::exp2(less - more));
  }

 private:
  virtual double Amount(const ExpertUse& use) const = 0;

  const double half_life_steps_;
};

class FrequencyPolicy : public DecayedSumPolicy {
 public:
  using DecayedSumPolicy::DecayedSumPolicy;
  absl::string_view name() const override { return "lfu"; }

 private:
  double Amount(const ExpertUse& use) const override { return static_cast<double>(use.rows); }
};

class RouterWeightPolicy : public DecayedSumPolicy {
 public:
  using DecayedSumPolicy::DecayedSumPolicy;
  absl::string_view name() const override { return "router"; }

 private:
  double Amount(const ExpertUse& use) const override { return static_cast<double>(use.weight); }
};

}  // namespace

double HalfLifeSteps(int num_slots, int num_layers, int num_experts_per_tok) {
  constexpr double kFills = 1.5;
  const double uses_a_step = static_cast<double>(num_layers) * num_experts_per_tok;
  return std::max(1.0, kFills * num_slots / uses_a_step);
}

absl::StatusOr<std::unique_ptr<CachePolicy>> MakeCachePolicy(absl::string_view name,
                                                             double half_life_steps) {
  if (name == "lru") return std::make_unique<LastUsePolicy>();
  if (name == "lfu") return std::make_unique<FrequencyPolicy>(half_life_steps);
  if (name == "router") return std::make_unique<RouterWeightPolicy>(half_life_steps);
  return absl::InvalidArgumentError(absl::StrCat("there is no cache policy \"", name, "\" among ",
                                                 absl::StrJoin(kCachePolicyNames, ", ")));
}

}  // namespace caravan
