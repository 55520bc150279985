// Every interleaving, within bounds, of what can happen around a change of plans: workers that
// join, die, are missed, come back or cannot have their stage; orders, reports and steps that are
// on their way meanwhile, and come late, to nobody or twice (plan_switch_world.h).
//
// States are explored breadth first. A state is kept as the actions that lead to it and made again
// by replaying them, since neither the controller nor the driver can be copied.

#include <algorithm>
#include <deque>
#include <iostream>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "gtest/gtest.h"
#include "tests/coordinator/plan_switch_world.h"

namespace caravan {
namespace {

constexpr size_t kCalmActions = 200;  // from any state to the end of all jobs

std::string Text(const std::vector<std::string>& actions) {
  std::string text;
  for (const std::string& action : actions) absl::StrAppend(&text, action, " ");
  return text;
}

/// From here on nothing fails: all jobs end, and a pipeline serves. `recover`: the keys of states
/// of which that is known; those on the way are added.
void ExpectRecovers(PlanSwitchWorld& world, std::unordered_set<std::string>& recover) {
  std::vector<std::string> way;
  while (!(world.Finished() && world.Serving())) {
    way.push_back(world.Key());
    if (recover.contains(way.back())) break;
    ASSERT_LT(way.size(), kCalmActions) << "no end in sight";
    const std::vector<std::string> actions = world.Actions(/*calm=*/true);
    ASSERT_FALSE(actions.empty()) << "nothing can happen any more";
    // In turn, so that nothing waits for ever.
    world.Do(actions[way.size() % actions.size()]);
    if (::testing::Test::HasFailure()) return;
  }
  recover.insert(way.begin(), way.end());
}

void Explore(const WorldBounds& bounds) {
  SilenceInfoLog();  // thousands of plans
  std::unordered_set<std::string> seen;
  std::unordered_set<std::string> recover;
  std::deque<std::vector<std::string>> frontier = {{}};
  size_t transitions = 0;
  size_t deepest = 0;
  while (!frontier.empty()) {
    const std::vector<std::string> path = std::move(frontier.front());
    frontier.pop_front();
    SCOPED_TRACE(Text(path));
    PlanSwitchWorld world(bounds);
    for (const std::string& action : path) world.Do(action);
    ASSERT_FALSE(::testing::Test::HasFailure());
    ++transitions;
    if (!seen.insert(world.Key()).second) continue;
    deepest = std::max(deepest, path.size());
    for (const std::string& action : world.Actions(/*calm=*/false)) {
      frontier.push_back(path);
      frontier.back().push_back(action);
    }
    ExpectRecovers(world, recover);
    ASSERT_FALSE(::testing::Test::HasFailure());
  }
  std::cout << seen.size() << " states, " << transitions << " transitions, " << deepest
            << " actions at most" << std::endl;
}

TEST(PlanSwitchModelTest, OneWorkerThatDiesAndComesBackAndAStepThatComesTwice) {
  Explore(
      {.workers = 1, .min_workers = 1, .job_tokens = {2}, .joins = 1, .deaths = 1, .repeats = 1});
}

TEST(PlanSwitchModelTest, TwoJobsOverOneWorkerThatDies) {
  Explore({.workers = 1,
           .min_workers = 1,
           .job_tokens = {2, 2},
           .joins = 1,
           .deaths = 1,
           .repeats = 0});
}

TEST(PlanSwitchModelTest, TwoWorkersOfWhomOneDies) {
  Explore(
      {.workers = 2, .min_workers = 1, .job_tokens = {2}, .joins = 0, .deaths = 1, .repeats = 0});
}

TEST(PlanSwitchModelTest, TwoWorkersOfWhomOneCannotHaveItsStage) {
  Explore({.workers = 2, .min_workers = 1, .job_tokens = {2}, .failures = 1});
}

TEST(PlanSwitchModelTest, TwoWorkersOfWhomOneDiesAndOneCannotHaveItsStage) {
  Explore({.workers = 2, .min_workers = 1, .job_tokens = {1}, .deaths = 1, .failures = 1});
}

TEST(PlanSwitchModelTest, TwoWorkersOfWhomOneDiesAndComesBack) {
  Explore({.workers = 2, .min_workers = 1, .job_tokens = {1}, .joins = 1, .deaths = 1});
}

TEST(PlanSwitchModelTest, ThreeWorkersOfWhomEachChangesThePlan) {
  Explore({.workers = 3, .min_workers = 1, .job_tokens = {2}});
}

}  // namespace
}  // namespace caravan
