#include "coordinator/load_history.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace caravan {
namespace {

// So many first tokens are looked at for a percentile, whatever the traffic.
constexpr size_t kMaxFirstTokens = 4096;

/// The smallest of `sorted` that at least `share` of them do not exceed. REQUIRES: not empty.
absl::Duration Percentile(const std::vector<absl::Duration>& sorted, double share) {
  const double rank = std::ceil(share * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

double PerSecond(int64_t before, int64_t now, absl::Duration elapsed) {
  if (elapsed <= absl::ZeroDuration()) return 0;
  return static_cast<double>(now - before) / absl::ToDoubleSeconds(elapsed);
}

}  // namespace

LoadHistory::LoadHistory(Options options) : options_(std::move(options)) {}

bool LoadHistory::Due() const {
  MutexLock lock(&mu_);
  return !baseline_.has_value() || options_.clock->Now() - baseline_->at >= options_.interval;
}

void LoadHistory::Take(const PipelineStats& stats, const v1::GetStatusResponse& cluster) {
  Baseline now;
  now.at = options_.clock->Now();
  now.generated_tokens = stats.generated_tokens;
  now.prompt_tokens = stats.prompt_tokens;
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    now.loads[worker.worker_id()] = worker.load();
  }

  MutexLock lock(&mu_);
  const std::optional<Baseline> before = std::exchange(baseline_, now);
  if (!before.has_value()) return;
  Sample sample;
  sample.at = now.at;
  const absl::Duration elapsed = now.at - before->at;
  sample.generated_tokens_per_s =
      PerSecond(before->generated_tokens, now.generated_tokens, elapsed);
  sample.prompt_tokens_per_s = PerSecond(before->prompt_tokens, now.prompt_tokens, elapsed);
  sample.queued_jobs = stats.interactive.queued + stats.bulk.queued;
  sample.running_jobs = stats.interactive.running + stats.bulk.running;
  for (const auto& [id, load] : now.loads) {
    const auto earlier = before->loads.find(id);
    if (earlier == before->loads.end()) continue;
    const double total_s = load.total_s() - earlier->second.total_s();
    if (total_s <= 0) continue;
    const double busy_s = load.busy_s() - earlier->second.busy_s();
    sample.busy_shares[id] = std::clamp(busy_s / total_s, 0.0, 1.0);
  }
  FillInPercentiles(sample);
  samples_.push_back(std::move(sample));
  if (samples_.size() > options_.num_samples) samples_.pop_front();
}

void LoadHistory::FillInPercentiles(Sample& sample) {
  while (!first_tokens_.empty() &&
         sample.at - first_tokens_.front().at > options_.first_token_window) {
    first_tokens_.pop_front();
  }
  if (first_tokens_.empty()) return;
  std::vector<absl::Duration> sorted;
  sorted.reserve(first_tokens_.size());
  for (const FirstToken& first_token : first_tokens_) sorted.push_back(first_token.since_submit);
  std::sort(sorted.begin(), sorted.end());
  sample.first_token_p50 = Percentile(sorted, 0.50);
  sample.first_token_p99 = Percentile(sorted, 0.99);
}

std::vector<LoadHistory::Sample> LoadHistory::Samples() const {
  MutexLock lock(&mu_);
  return {samples_.begin(), samples_.end()};
}

std::map<uint32_t, double> LoadHistory::BusyShares() const {
  MutexLock lock(&mu_);
  return samples_.empty() ? std::map<uint32_t, double>() : samples_.back().busy_shares;
}

void LoadHistory::OnFirstToken(JobPriority priority, absl::Duration since_submit) {
  // How long bulk jobs wait is up to those before them, and says nothing about the service.
  if (priority != JobPriority::kInteractive) return;
  MutexLock lock(&mu_);
  first_tokens_.push_back({options_.clock->Now(), since_submit});
  if (first_tokens_.size() > kMaxFirstTokens) first_tokens_.pop_front();
}

}  // namespace caravan
