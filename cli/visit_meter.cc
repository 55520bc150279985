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
    begun_ = SteadyClock().Now();
    bytes_before_ = reads_.counters().read_bytes;
  }

  absl::Status RoutedExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                             const int32_t* expert_ids, const float* weights, int64_t k,
                             float* out) override {
    TimedExperts timed(experts);
    absl::Status status = backend().RoutedExperts(timed, x, num_rows, expert_ids, weights, k, out);
    ExpertVisit visit;
    visit.waited = timed.waited();
    visit.compute = SteadyClock().Now() - begun_ - visit.waited;
    visit.read_bytes = reads_.counters().read_bytes - bytes_before_;
    touched_.assign(expert_ids, expert_ids + num_rows * k);
    std::sort(touched_.begin(), touched_.end());
    visit.touched = std::unique(touched_.begin(), touched_.end()) - touched_.begin();
    log_.Add(visit);
    return status;
  }

 private:
  const ReadMeter& reads_;
  VisitLog& log_;
  absl::Duration begun_;
  int64_t bytes_before_ = 0;
  std::vector<int32_t> touched_;  // scratch
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
