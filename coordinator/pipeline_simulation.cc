#include "coordinator/pipeline_simulation.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <unordered_map>
#include <utility>

#include "absl/time/time.h"
#include "base/check.h"
#include "coordinator/sequence.h"

namespace caravan {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

class Simulator {
 public:
  Simulator(const SimulatedPipeline& pipeline, const std::vector<SimulatedJob>& jobs)
      : pipeline_(pipeline),
        jobs_(jobs),
        num_stages_(pipeline.scheduling.num_stages),
        scheduler_(SchedulingOf(pipeline, jobs.size())),
        followers_(jobs.size()),
        stage_free_(static_cast<size_t>(num_stages_)),
        link_free_(static_cast<size_t>(num_stages_)) {
    result_.jobs.resize(jobs.size());
    result_.busy_seconds.resize(static_cast<size_t>(num_stages_));
    for (size_t i = 0; i < jobs.size(); ++i) {
      const SimulatedJob& job = jobs[i];
      CARAVAN_CHECK(job.prompt_tokens >= 1 && job.reply_tokens >= 1 && job.arrival_seconds >= 0);
      CARAVAN_CHECK(job.after < static_cast<int>(i));
      if (job.after < 0) {
        arrivals_.push({job.arrival_seconds, i});
      } else {
        followers_[static_cast<size_t>(job.after)].push_back(i);
      }
    }
  }

  Simulation Run(double until) {
    while (true) {
      const double arrival = arrivals_.empty() ? kNever : arrivals_.top().first;
      const double home = on_way_.empty() ? kNever : on_way_.front().home_seconds;
      const double now = std::min(arrival, home);
      if (now == kNever || now > until) break;
      now_ = now;
      // What comes home at the same time has made room for who arrives.
      if (home <= arrival) {
        TakeHome();
      } else {
        Arrive();
      }
      while (std::optional<v1::Step> step = scheduler_.NextStep(/*admit=*/true)) {
        Send(*std::move(step));
      }
      result_.most_waiting = std::max<int64_t>(result_.most_waiting, scheduler_.num_queued());
    }
    result_.seconds = now_;
    result_.counters = scheduler_.counters();
    return std::move(result_);
  }

 private:
  struct OnWay {
    v1::Step step;
    double sent_seconds = 0;
    double home_seconds = 0;
  };
  using Arrival = std::pair<double, size_t>;

  static Scheduler::Options SchedulingOf(const SimulatedPipeline& pipeline, size_t num_jobs) {
    Scheduler::Options options = pipeline.scheduling;
    CARAVAN_CHECK(!options.drafts);
    // Each prompt begins with a token of its own, so that none begin alike.
    options.vocab_size = static_cast<int64_t>(num_jobs) + 1;
    options.suspects = false;
    return options;
  }

  void Arrive() {
    const size_t index = arrivals_.top().second;
    arrivals_.pop();
    const SimulatedJob& job = jobs_[index];
    SimulatedOutcome& outcome = result_.jobs[index];
    outcome.arrival_seconds = now_;
    JobSpec spec;
    spec.prompt.assign(static_cast<size_t>(job.prompt_tokens), 0);
    spec.prompt.front() = static_cast<int32_t>(index + 1);
    spec.max_new_tokens = job.reply_tokens;
    spec.priority = job.priority;
    auto sequence = std::make_unique<Sequence>(index, std::move(spec), absl::Seconds(now_));
    if (!scheduler_.CheckFits(*sequence).ok()) {
      outcome.refused = true;
      End(index);
      return;
    }
    scheduler_.Enqueue(sequence.get());
    sequences_[index] = std::move(sequence);
  }

  void End(size_t index) {
    for (const size_t follower : followers_[index]) {
      arrivals_.push({now_ + jobs_[follower].arrival_seconds, follower});
    }
  }

  void Send(v1::Step step) {
    StepShape shape;
    int64_t attended = 0;
    for (const v1::SequenceSlice& slice : step.slices()) {
      const int64_t rows = slice.token_ids_size();
      shape.rows += rows;
      if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) ++shape.sampled_rows;
      attended += rows * slice.first_position() + rows * (rows + 1) / 2;
    }
    shape.attended_tokens = attended / shape.rows;
    double arrival = now_;
    for (int stage = 0; stage < num_stages_; ++stage) {
      const auto s = static_cast<size_t>(stage);
      const double seconds = pipeline_.stage_seconds(stage, shape);
      stage_free_[s] = std::max(arrival, stage_free_[s]) + seconds;
      result_.busy_seconds[s] += seconds;
      double left = stage_free_[s];
      if (stage + 1 < num_stages_) {
        left = std::max(left, link_free_[s]) + pipeline_.send_seconds(stage, shape.rows);
        link_free_[s] = left;
      }
      arrival = left + pipeline_.latency_seconds(stage);
    }
    on_way_.push_back({std::move(step), now_, arrival});
  }

  void TakeHome() {
    OnWay home = std::move(on_way_.front());
    on_way_.pop_front();
    for (const v1::SequenceSlice& slice : home.step.slices()) {
      v1::SliceResult& result = *home.step.add_results();
      result.set_sequence_id(slice.sequence_id());
      if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) result.add_sampled();
    }
    const auto returned =
        scheduler_.TakeIn(home.step, absl::Seconds(home.home_seconds - home.sent_seconds));
    CARAVAN_CHECK(returned.ok());
    for (const Scheduler::ReturnedSlice& slice : *returned) {
      const size_t index = slice.sequence->id();
      SimulatedOutcome& outcome = result_.jobs[index];
      result_.generated_tokens += slice.num_tokens;
      if (slice.num_tokens > 0 && outcome.first_token_seconds < 0) {
        outcome.first_token_seconds = now_;
      }
      if (slice.sequence->state() != SequenceState::kFinished) continue;
      outcome.end_seconds = now_;
      sequences_.erase(index);
      End(index);
    }
  }

  const SimulatedPipeline& pipeline_;
  const std::vector<SimulatedJob>& jobs_;
  const int num_stages_;
  Scheduler scheduler_;
  std::vector<std::vector<size_t>> followers_;  // of each job, those that come after its end
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::deque<OnWay> on_way_;                                         // steps, in order
  std::unordered_map<size_t, std::unique_ptr<Sequence>> sequences_;  // by job
  std::vector<double> stage_free_;  // when each stage has done what it was given
  std::vector<double> link_free_;   // when the link behind it has
  double now_ = 0;
  Simulation result_;
};

}  // namespace

Simulation Simulate(const SimulatedPipeline& pipeline, const std::vector<SimulatedJob>& jobs,
                    double until_seconds) {
  return Simulator(pipeline, jobs).Run(until_seconds);
}

}  // namespace caravan
