#include "worker/experts/cache_policy.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace caravan {
namespace {

// A shorter half-life forgets who comes back, a longer one lets experts of long ago keep out those
// that were just used. docs/performance.md, "Which experts stay", says how this one was chosen.
constexpr double kHalfLifeSteps = 16;
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
  double AfterUse(double score, const ExpertUse& use) const override {
    const double added = static_cast<double>(use.step) / kHalfLifeSteps +
                         std::log2(std::max(kLeastAmount, Amount(use)));
    const auto [less, more] = std::minmax(score, added);
    return more + std::log2(1 + std::exp2(less - more));
  }

 private:
  virtual double Amount(const ExpertUse& use) const = 0;
};

class FrequencyPolicy : public DecayedSumPolicy {
 public:
  absl::string_view name() const override { return "lfu"; }

 private:
  double Amount(const ExpertUse& use) const override { return static_cast<double>(use.rows); }
};

class RouterWeightPolicy : public DecayedSumPolicy {
 public:
  absl::string_view name() const override { return "router"; }

 private:
  double Amount(const ExpertUse& use) const override { return static_cast<double>(use.weight); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<CachePolicy>> MakeCachePolicy(absl::string_view name) {
  if (name == "lru") return std::make_unique<LastUsePolicy>();
  if (name == "lfu") return std::make_unique<FrequencyPolicy>();
  if (name == "router") return std::make_unique<RouterWeightPolicy>();
  return absl::InvalidArgumentError(absl::StrCat("there is no cache policy \"", name, "\" among ",
                                                 absl::StrJoin(kCachePolicyNames, ", ")));
}

}  // namespace caravan
