#include "worker/step_loop.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "worker/step_check.h"

namespace caravan {

StepLoop::StepLoop(uint64_t plan_version, std::unique_ptr<Stage> stage,
                   std::unique_ptr<ActivationChannel> next,
                   std::function<void(const absl::Status&)> on_broken)
    : plan_version_(plan_version),
      stage_(std::move(stage)),
      next_(std::move(next)),
      on_broken_(std::move(on_broken)),
      queue_(kQueuedSteps),
      meter_(SteadyClock()),
      thread_("step-loop", [this] {
        Run();
        stage_->Finish();
      }) {}

StepLoop::~StepLoop() { Stop(); }

void StepLoop::Stop() {
  queue_.Close();
  next_->Close();
  thread_.Join();
}

v1::WorkerLoad StepLoop::load() const {
  v1::WorkerLoad load = meter_.Read();
  if (stage_->experts() == nullptr) return load;
  const ExpertStore::Counters counters = stage_->experts()->counters();
  v1::ExpertLoad& experts = *load.mutable_experts();
  experts.set_hits(static_cast<uint64_t>(counters.hits));
  experts.set_misses(static_cast<uint64_t>(counters.misses));
  experts.set_reads(static_cast<uint64_t>(counters.reads));
  experts.set_read_bytes(static_cast<uint64_t>(counters.bytes_read));
  experts.set_evictions(static_cast<uint64_t>(counters.evictions));
  experts.set_guesses_used(static_cast<uint64_t>(counters.guesses_used));
  experts.set_guesses_wasted(static_cast<uint64_t>(counters.guesses_wasted));
  experts.set_waited_s(absl::ToDoubleSeconds(counters.waited));
  experts.set_guesses(static_cast<uint64_t>(counters.guesses));
  experts.set_guessable(static_cast<uint64_t>(counters.guessable));
  experts.set_wasted_bytes(static_cast<uint64_t>(counters.bytes_wasted));
  experts.set_failovers(static_cast<uint64_t>(counters.failovers));
  return load;
}

absl::Status StepLoop::Receive(v1::Step step) {
  if (step.plan_version() != plan_version_) {
    return absl::AbortedError(absl::StrCat("a step of plan ", step.plan_version(),
                                           " came to a stage of plan ", plan_version_));
  }
  MutexLock lock(&intake_mu_);
  if (step.step_id() <= last_step_id_) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step.step_id(), " came after step ", last_step_id_));
  }
  last_step_id_ = step.step_id();
  if (!queue_.Push(std::move(step))) return absl::UnavailableError("the stage is ending");
  return absl::OkStatus();
}

void StepLoop::Run() {
  while (std::optional<v1::Step> step = queue_.Pop()) {
    if (queue_.closed()) return;
    meter_.BeginStep();
    v1::Step done = stage_->Run(*std::move(step));
    meter_.EndStep(done.has_error() ? 0 : CountRows(done));
    const absl::Status sent = next_->Send(std::move(done));
    if (sent.ok()) {
      stage_->AfterStep();
      continue;
    }
    const bool ending = queue_.closed();
    queue_.Close();
    if (!ending) on_broken_(sent);
    return;
  }
}

}  // namespace caravan
