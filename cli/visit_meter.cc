#include "cli/visit_meter.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "kernels/forwarding_backend.h"

namespace caravan {
namespace {

/// Measures how long it takes to be given experts.
class TimedExperts : public ExpertBatches {
 public:
  explicit TimedExperts(ExpertBatches& experts) : experts_(experts) {}

  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
    const absl::Duration begin = SteadyClock().Now();
    absl::StatusOr<absl::Span<const LoadedExpert>> batch = experts_.Next();
    waited_ += SteadyClock().Now() - begin;
    return batch;
  }
  bool ascending() const override { return experts_.ascending(); }

  absl::Duration waited() const { return waited_; }

 private:
  ExpertBatches& experts_;
  absl::Duration waited_;
};

class VisitMeter : public ForwardingBackend {
 public:
  VisitMeter(std::unique_ptr<Backend> backend, const ReadMeter& reads, VisitLog& log)
      : ForwardingBackend(std::move(backend)), reads_(reads), log_(log) {}

  void Route(const RouterShape& shape, const float* logits, const float* bias, int64_t num_rows,
             int32_t* expert_ids, float* weights) override {
    backend().Route(shape, logits, bias, num_rows, expert_ids, weights);
    RouteEnd& end = EndOf(expert_ids);
    end.at = SteadyClock().Now();
    end.bytes_before = reads_.counters().read_bytes;
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    TimedExperts timed(experts);
    absl::Status status = backend().RoutedExperts(timed, x, num_rows, expert_ids, weights, k, out);
    const RouteEnd& begin = EndOf(expert_ids);
    ExpertVisit visit;
    visit.waited = timed.waited();
    visit.compute = SteadyClock().Now() - begin.at - visit.waited;
    visit.read_bytes = reads_.counters().read_bytes - begin.bytes_before;
    touched_.assign(expert_ids, expert_ids + num_rows * k);
    std::sort(touched_.begin(), touched_.end());
    visit.touched = std::unique(touched_.begin(), touched_.end()) - touched_.begin();
    log_.Add(visit);
    return status;
  }

 private:
  /// When a Route ended, and what had been read by then.
  struct RouteEnd {
    const int32_t* expert_ids = nullptr;  // where it left its choices
    absl::Duration at;
    int64_t bytes_before = 0;
  };

  /// Of the last Route that left its choices there: the next layer's router may have run since, for
  /// hints, which lie elsewhere.
  RouteEnd& EndOf(const int32_t* expert_ids) {
    const auto same = [expert_ids](const RouteEnd& end) { return end.expert_ids == expert_ids; };
    const auto found = std::find_if(route_ends_.begin(), route_ends_.end(), same);
    if (found != route_ends_.end()) return *found;
    RouteEnd& added = route_ends_.emplace_back();
    added.expert_ids = expert_ids;
    return added;
  }

  const ReadMeter& reads_;
  VisitLog& log_;
  std::vector<RouteEnd> route_ends_;  // as many as there are places for choices: two
  std::vector<int32_t> touched_;      // scratch
};

}  // namespace

void VisitLog::Add(const ExpertVisit& visit) {
  MutexLock lock(&mu_);
  visits_.push_back(visit);
}

std::vector<ExpertVisit> VisitLog::Take() {
  MutexLock lock(&mu_);
  return std::exchange(visits_, {});
}

std::unique_ptr<Backend> MakeVisitMeter(std::unique_ptr<Backend> backend, const ReadMeter* reads,
                                        VisitLog* log) {
  return std::make_unique<VisitMeter>(std::move(backend), *reads, *log);
}

}  // namespace caravan
