#include "coordinator/split_backoff.h"

#include <algorithm>

namespace caravan {
namespace {

constexpr int kMostDoublings = 6;

}  // namespace

bool SameSplit(const PipelinePlan& a, const PipelinePlan& b) {
  return std::equal(a.stages.begin(), a.stages.end(), b.stages.begin(), b.stages.end(),
                    [](const StagePlan& x, const StagePlan& y) {
                      return x.worker == y.worker && x.stage == y.stage;
                    });
}

void SplitBackoff::Failed(const PipelinePlan& plan, const absl::Status& why, absl::Duration delay) {
  const int before = last_.has_value() && SameSplit(last_->plan, plan) ? last_->in_a_row : 0;
  last_ = Failure{.plan = plan,
                  .in_a_row = before + 1,
                  .until = clock_->Now() + delay * (1 << std::min(before, kMostDoublings)),
                  .why = std::string(why.message())};
}

void SplitBackoff::Serves(const PipelinePlan& plan) {
  if (last_.has_value() && SameSplit(last_->plan, plan)) last_.reset();
}

bool SplitBackoff::Holds(const PipelinePlan& plan) const {
  return last_.has_value() && SameSplit(last_->plan, plan) && clock_->Now() < last_->until;
}

std::optional<absl::Duration> SplitBackoff::until() const {
  if (!last_.has_value()) return std::nullopt;
  return last_->until;
}

std::string SplitBackoff::why() const {
  return last_.has_value() && clock_->Now() < last_->until ? last_->why : "";
}

}  // namespace caravan
