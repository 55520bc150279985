#include "coordinator/plan_roster.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/log.h"

namespace caravan {
namespace {

// Of more it is not looked for who might be spared: a plan may take long to make.
constexpr size_t kMostSpared = 8;

}  // namespace

absl::StatusOr<WorkerId> PlanRoster::Find(const std::string& worker) const {
  std::vector<WorkerId> found;
  for (const Member& member : members_->Members()) {
    if (absl::StrCat(Number(member.id)) == worker) return member.id;
    if (member.registration.name() == worker) found.push_back(member.id);
  }
  if (found.empty()) return absl::NotFoundError(absl::StrCat("no worker is called ", worker));
  if (found.size() == 1) return found.front();
  return absl::InvalidArgumentError(
      absl::StrCat(found.size(), " workers are called ", worker, ": say its number"));
}

void PlanRoster::Lost(const Member& member, bool had_stage) {
  drained_.erase(member.id);
  left_out_.erase(member.id);
  no_offloading_.erase(member.id);
  suspects_.erase(member.id);
  backoff_.Lost(member, had_stage);
}

void PlanRoster::Serves(const PipelinePlan& plan) {
  for (const StagePlan& stage : plan.stages) backoff_.Serves(stage.worker);
}

void PlanRoster::Ends(const PipelinePlan& plan) {
  for (const StagePlan& stage : plan.stages) backoff_.Ends(stage.worker);
}

bool PlanRoster::IsPermanent(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

void PlanRoster::LeaveOut(WorkerId worker, const StagePlan& stage, const absl::Status& why,
                          absl::StatusCode code) {
  // It may lack no more than a copy of the pack, and serve with a stage that fits its memory.
  const bool only_offloading =
      stage.expert_bytes > 0 && code == absl::StatusCode::kFailedPrecondition;
  LogWarning(only_offloading ? "worker_does_not_offload" : "worker_left_out",
             {{"worker", DescribeWorker(*members_->Find(worker))}, {"why", why.message()}});
  no_offloading_.erase(worker);
  (only_offloading ? no_offloading_ : left_out_)[worker] = std::string(why.message());
  suspects_.erase(worker);  // `why` may be what is said there
}

std::vector<Member> PlanRoster::Usable() const {
  std::vector<Member> usable = members_->Members();
  std::erase_if(usable, [this](const Member& member) {
    return IsKeptOut(member.id) || backoff_.Holds(member.id);
  });
  return usable;
}

absl::StatusOr<std::vector<WorkerId>> PlanRoster::Needed(TryPlan try_plan, WorkerId but) const {
  const auto try_with = [&](const std::vector<WorkerId>& let_in) {
    std::vector<Member> members = members_->Members();
    std::erase_if(members, [&](const Member& member) {
      return member.id == but || IsKeptOut(member.id) ||
             (backoff_.Holds(member.id) && !absl::c_linear_search(let_in, member.id));
    });
    return try_plan(members);
  };
  absl::Status tried = try_with({});
  if (tried.ok()) return std::vector<WorkerId>();
  std::vector<WorkerId> held = backoff_.Held();
  std::erase_if(held, [&](WorkerId id) { return id == but || IsKeptOut(id); });
  if (!held.empty()) tried = try_with(held);
  if (!tried.ok()) return tried;
  const auto first = [&held](size_t count) {
    return std::vector<WorkerId>(held.begin(), held.begin() + static_cast<ptrdiff_t>(count));
  };
  size_t too_few = 0;
  size_t enough = held.size();
  while (enough - too_few > 1) {
    const size_t middle = (too_few + enough) / 2;
    (try_with(first(middle)).ok() ? enough : too_few) = middle;
  }
  std::vector<WorkerId> needed = first(enough);
  // Without the last one it was not enough; of those before some may not have helped.
  if (needed.size() > kMostSpared) return needed;
  for (size_t i = needed.size(); i > 1; --i) {
    std::vector<WorkerId> fewer = needed;
    fewer.erase(fewer.begin() + static_cast<ptrdiff_t>(i) - 2);
    if (try_with(fewer).ok()) needed = std::move(fewer);
  }
  return needed;
}

std::string PlanRoster::Describe(absl::FunctionRef<bool(WorkerId)> has_stage) const {
  std::string text;
  for (const WorkerId id : drained_) {
    absl::StrAppend(&text, "; drained: ", DescribeWorker(*members_->Find(id)));
  }
  for (const auto& [id, why] : left_out_) absl::StrAppend(&text, "; left out: ", why);
  for (const auto& [id, why] : no_offloading_) {
    absl::StrAppend(&text, has_stage(id) ? "; not offloading: " : "; left out: ", why);
  }
  if (backoff_.HoldsAnybody()) absl::StrAppend(&text, "; held back: ", backoff_.Describe());
  return text;
}

void PlanRoster::Describe(WorkerId worker, v1::WorkerStatus& status) const {
  status.set_drained(IsDrained(worker));
  status.set_held_back_s(absl::ToDoubleSeconds(backoff_.HoldsFor(worker)));
}

}  // namespace caravan
