#include "coordinator/rejoin_backoff.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace caravan {
namespace {

constexpr int kLossesInARow = 3;  // so many are held against a worker
constexpr absl::Duration kServedWell = absl::Minutes(5);
constexpr int kMostDelays = 10;
constexpr absl::Duration kForgotten = absl::Hours(1);

}  // namespace

RejoinBackoff::Key RejoinBackoff::KeyOf(const Member& member) {
  const std::string& name = member.registration.name();
  if (!member.identity.empty()) return {member.identity, name, ""};
  const std::string& address = member.registration.address();
  return {"", name, address.substr(0, address.rfind(':'))};
}

absl::Duration RejoinBackoff::DelayAfter(int losses) const {
  if (losses < kLossesInARow) return absl::ZeroDuration();
  const int doublings = std::min(losses - kLossesInARow, 8);
  return options_.delay * std::min(1 << doublings, kMostDelays);
}

void RejoinBackoff::Serves(WorkerId worker) {
  serving_since_.try_emplace(worker, options_.clock->Now());
}

void RejoinBackoff::Ends(WorkerId worker) {
  const auto serving = serving_since_.find(worker);
  if (serving == serving_since_.end()) return;
  served_[worker] += options_.clock->Now() - serving->second;
  serving_since_.erase(serving);
}

/// And forgets it.
absl::Duration RejoinBackoff::TakeServed(WorkerId worker) {
  Ends(worker);
  const auto served = served_.extract(worker);
  return served.empty() ? absl::ZeroDuration() : served.mapped();
}

void RejoinBackoff::Lost(const Member& member, bool had_stage) {
  const absl::Duration now = options_.clock->Now();
  const bool served_well = TakeServed(member.id) >= kServedWell;
  held_.erase(member.id);
  std::erase_if(records_,
                [now](const auto& entry) { return now - entry.second.last_lost > kForgotten; });
  if (!had_stage) return;
  Record& record = records_[KeyOf(member)];
  record.losses = served_well ? 1 : record.losses + 1;
  record.last_lost = now;
}

void RejoinBackoff::Joined(const Member& member) {
  const auto record = records_.find(KeyOf(member));
  if (record == records_.end()) return;
  const absl::Duration until = record->second.last_lost + DelayAfter(record->second.losses);
  if (until <= options_.clock->Now()) return;
  held_[member.id] = {until, DescribeWorker(member), record->second.losses};
  LogWarning("worker_held_back",
             {{"worker", DescribeWorker(member)},
              {"lost_in_a_row", record->second.losses},
              {"seconds", absl::ToDoubleSeconds(until - options_.clock->Now())}});
}

void RejoinBackoff::LetIn(const std::vector<WorkerId>& workers) {
  for (const WorkerId id : workers) {
    const auto held = held_.extract(id);
    if (held.empty()) continue;
    LogInfo("worker_let_in",
            {{"worker", held.mapped().name}, {"why", "the others cannot do without"}});
  }
}

std::vector<WorkerId> RejoinBackoff::Held() const {
  std::vector<WorkerId> held;
  for (const auto& [id, hold] : held_) held.push_back(id);
  std::sort(held.begin(), held.end(), [this](WorkerId a, WorkerId b) {
    const Hold& x = held_.at(a);
    const Hold& y = held_.at(b);
    return std::tie(x.losses, x.until, a) < std::tie(y.losses, y.until, b);
  });
  return held;
}

bool RejoinBackoff::EndHolds() {
  const absl::Duration now = options_.clock->Now();
  return std::erase_if(held_, [now](const auto& entry) {
           if (entry.second.until > now) return false;
           LogInfo("worker_let_in", {{"worker", entry.second.name}, {"why", "its delay is over"}});
           return true;
         }) > 0;
}

absl::Duration RejoinBackoff::HoldsFor(WorkerId worker) const {
  const auto held = held_.find(worker);
  if (held == held_.end()) return absl::ZeroDuration();
  return std::max(held->second.until - options_.clock->Now(), absl::ZeroDuration());
}

std::string RejoinBackoff::Describe() const {
  std::string text;
  for (const auto& [id, hold] : held_) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", hold.name, ", lost ", hold.losses,
                    " times in a row, for ",
                    absl::FormatDuration(absl::Ceil(HoldsFor(id), absl::Seconds(1))));
  }
  return text;
}

}  // namespace caravan
