#include "coordinator/pipeline_driver.h"

#include <pthread.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

static_assert(std::endian::native == std::endian::little, "logits travel as little-endian float32");

std::vector<float> DecodeLogits(const std::string& bytes) {
  std::vector<float> logits(bytes.size() / sizeof(float));
  std::memcpy(logits.data(), bytes.data(), logits.size() * sizeof(float));
  return logits;
}

absl::Status ToStatus(const v1::StepError& error) {
  // The codes are google.rpc.Code's; whatever else a stage says is a bug of that stage.
  const bool known = error.code() > 0 && error.code() <= 16;
  return absl::Status(
      known ? static_cast<absl::StatusCode>(error.code()) : absl::StatusCode::kInternal,
      error.message());
}

}  // namespace

JobHandle::JobHandle(uint64_t id, std::shared_ptr<JobStream> stream,
                     std::shared_ptr<DriverLink> link)
    : id_(id), stream_(std::move(stream)), link_(std::move(link)) {}

absl::StatusOr<JobUpdate> JobHandle::Next(absl::Duration timeout) { return stream_->Next(timeout); }

void JobHandle::Cancel() {
  MutexLock lock(&link_->mu);
  // NotFound: the job has ended by itself.
  if (link_->driver != nullptr) link_->driver->Cancel(id_).IgnoreError();
}

PipelineDriver::PipelineDriver(Options options)
    : options_(std::move(options)), without_pipeline_since_(options_.clock->Now()) {
  CARAVAN_CHECK(options_.vocab_size >= 1 && options_.context_tokens >= 1);
  CARAVAN_CHECK(options_.prefill_chunk >= 1);
  {
    MutexLock lock(&link_->mu);
    link_->driver = this;
  }
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "pipeline-driver");
    Run();
  });
}

PipelineDriver::~PipelineDriver() {
  {
    MutexLock lock(&link_->mu);
    link_->driver = nullptr;
  }
  Shutdown();
  thread_.join();
}

void PipelineDriver::Shutdown() {
  const absl::Status why = absl::UnavailableError("the coordinator is shutting down");
  std::shared_ptr<ActivationChannel> first_hop;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    first_hop = DetachLocked(why);
    FailJobsLocked(/*queued_too=*/true, why);
    changed_.SignalAll();
  }
  if (first_hop != nullptr) first_hop->Close();
}

void PipelineDriver::Attach(Pipeline pipeline) {
  MutexLock lock(&mu_);
  if (stopping_) return;
  CARAVAN_CHECK(!pipeline_.has_value() && pipeline.first_hop != nullptr);
  Scheduler::Options scheduling;
  scheduling.plan_version = pipeline.plan_version;
  scheduling.num_stages = pipeline.num_stages;
  scheduling.kv_blocks = pipeline.kv_blocks;
  scheduling.kv_block_tokens = pipeline.kv_block_tokens;
  scheduling.max_step_tokens = pipeline.max_step_tokens;
  scheduling.prefill_chunk = options_.prefill_chunk;
  scheduling.vocab_size = options_.vocab_size;
  pipeline_.emplace(
      ServingPipeline{pipeline.plan_version, Scheduler(scheduling), std::move(pipeline.first_hop)});
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    Job& job = it->second;
    if (const absl::Status fits = pipeline_->scheduler.CheckFits(job.sequence); fits.ok()) {
      pipeline_->scheduler.Enqueue(&job.sequence);
      ++it;
    } else {
      job.stream->Fail(fits);
      it = jobs_.erase(it);
    }
  }
  changed_.SignalAll();
}

void PipelineDriver::Detach(const absl::Status& why) {
  std::shared_ptr<ActivationChannel> first_hop;
  {
    MutexLock lock(&mu_);
    first_hop = DetachLocked(why);
  }
  if (first_hop != nullptr) first_hop->Close();
}

void PipelineDriver::Break(uint64_t plan_version, const absl::Status& why) {
  std::shared_ptr<ActivationChannel> first_hop;
  {
    MutexLock lock(&mu_);
    if (!pipeline_.has_value() || pipeline_->plan_version != plan_version) return;
    first_hop = DetachLocked(why);
    breakages_.push_back({plan_version, why});
  }
  first_hop->Close();
}

std::shared_ptr<ActivationChannel> PipelineDriver::DetachLocked(const absl::Status& why) {
  CARAVAN_CHECK(!why.ok());
  if (!pipeline_.has_value()) return nullptr;
  std::shared_ptr<ActivationChannel> first_hop = std::move(pipeline_->first_hop);
  pipeline_.reset();
  without_pipeline_since_ = options_.clock->Now();
  FailJobsLocked(/*queued_too=*/false, why);
  changed_.SignalAll();
  return first_hop;
}

void PipelineDriver::FailJobsLocked(bool queued_too, const absl::Status& why) {
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    if (queued_too || it->second.sequence.running()) {
      it->second.stream->Fail(why);
      it = jobs_.erase(it);
    } else {
      ++it;
    }
  }
}

absl::Status PipelineDriver::Receive(v1::Step step) {
  absl::Status broken;
  {
    MutexLock lock(&mu_);
    if (!pipeline_.has_value() || pipeline_->plan_version != step.plan_version()) {
      return absl::AbortedError(absl::StrCat(
          "step ", step.step_id(), " belongs to plan ", step.plan_version(),
          pipeline_.has_value() ? absl::StrCat(", the present one is ", pipeline_->plan_version)
                                : std::string(", and there is none at present")));
    }
    auto returned = pipeline_->scheduler.TakeIn(step);
    if (returned.ok()) {
      for (const Scheduler::ReturnedSlice& slice : *returned) TakeInLocked(step, slice);
      changed_.SignalAll();
    } else {
      broken = returned.status();
    }
  }
  if (!broken.ok()) Break(step.plan_version(), broken);
  return broken;
}

void PipelineDriver::TakeInLocked(const v1::Step& step, const Scheduler::ReturnedSlice& returned) {
  Sequence& sequence = *returned.sequence;
  const auto it = jobs_.find(sequence.id());
  JobStream& stream = *it->second.stream;
  if (returned.result == nullptr) {
    stream.Fail(ToStatus(step.error()));
  } else if (sequence.wants_prompt_logits()) {
    const std::vector<float> logits = DecodeLogits(returned.result->logits());
    const auto rows = static_cast<int64_t>(logits.size()) / options_.vocab_size;
    stream.AddLogits(sequence.cached_tokens() - rows, logits);
  } else if (sequence.state() != SequenceState::kPrefilling) {
    stream.AddToken(
        {static_cast<int32_t>(returned.result->token_id()), returned.result->log_probability()});
  }
  if (sequence.state() == SequenceState::kFinished) stream.Finish(sequence.finish_reason());
  if (!sequence.running()) jobs_.erase(it);
}

absl::StatusOr<std::unique_ptr<JobHandle>> PipelineDriver::Submit(JobSpec spec) {
  CARAVAN_RETURN_IF_ERROR(CheckJobSpec(spec, options_.vocab_size, options_.context_tokens));
  const int64_t room = options_.context_tokens - static_cast<int64_t>(spec.prompt.size());
  spec.max_new_tokens = std::min(spec.max_new_tokens, room);
  const bool nothing_to_do = spec.max_new_tokens == 0 && !spec.prompt_logits;

  MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("the coordinator is shutting down");
  if (nothing_to_do) {
    auto stream = std::make_shared<JobStream>();
    stream->Finish(v1::FINISH_REASON_LENGTH);
    return std::make_unique<JobHandle>(++last_job_id_, std::move(stream), link_);
  }
  const auto num_queued = std::count_if(jobs_.begin(), jobs_.end(), [](const auto& entry) {
    return entry.second.sequence.state() == SequenceState::kQueued;
  });
  if (num_queued >= options_.max_queued_jobs) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", num_queued, " jobs wait"));
  }
  const uint64_t id = ++last_job_id_;
  const auto it = jobs_.try_emplace(id, id, std::move(spec), options_.clock->Now()).first;
  Job& job = it->second;
  if (pipeline_.has_value()) {
    if (absl::Status fits = pipeline_->scheduler.CheckFits(job.sequence); !fits.ok()) {
      jobs_.erase(it);
      return fits;
    }
    pipeline_->scheduler.Enqueue(&job.sequence);
  }
  changed_.SignalAll();
  return std::make_unique<JobHandle>(id, job.stream, link_);
}

absl::Status PipelineDriver::Cancel(uint64_t job_id) {
  MutexLock lock(&mu_);
  const auto it = jobs_.find(job_id);
  if (it == jobs_.end()) {
    return absl::NotFoundError(absl::StrCat("no job ", job_id, " is queued or running"));
  }
  Job& job = it->second;
  job.stream->Fail(absl::CancelledError(absl::StrCat("job ", job_id, " was cancelled")));
  job.sequence.Cancel();
  if (pipeline_.has_value()) pipeline_->scheduler.Release(&job.sequence);
  jobs_.erase(it);
  changed_.SignalAll();
  return absl::OkStatus();
}

std::vector<v1::JobSummary> PipelineDriver::List() const {
  MutexLock lock(&mu_);
  std::vector<v1::JobSummary> summaries;
  for (const auto& [id, job] : jobs_) {
    v1::JobSummary& summary = summaries.emplace_back();
    summary.set_job_id(id);
    summary.set_state(job.sequence.running() ? v1::JOB_STATE_RUNNING : v1::JOB_STATE_QUEUED);
    summary.set_prompt_tokens(static_cast<uint32_t>(job.sequence.prompt_tokens()));
    summary.set_completion_tokens(static_cast<uint32_t>(job.sequence.generated_tokens()));
    summary.set_age_s(absl::ToDoubleSeconds(options_.clock->Now() - job.submitted_at));
  }
  return summaries;
}

void PipelineDriver::PauseAdmission() {
  MutexLock lock(&mu_);
  if (paused_) return;
  paused_ = true;
  tell_idle_ = true;
  changed_.SignalAll();
}

void PipelineDriver::ResumeAdmission() {
  MutexLock lock(&mu_);
  paused_ = false;
  tell_idle_ = false;
  changed_.SignalAll();
}

bool PipelineDriver::Idle() const {
  MutexLock lock(&mu_);
  return IdleLocked();
}

bool PipelineDriver::IdleLocked() const {
  return !pipeline_.has_value() || pipeline_->scheduler.Idle();
}

void PipelineDriver::SetWaitingReason(std::string reason) {
  MutexLock lock(&mu_);
  waiting_reason_ = std::move(reason);
}

void PipelineDriver::Tick() {
  MutexLock lock(&mu_);
  ExpireLocked();
}

// Without a pipeline every job is queued, and the oldest gives up first.
absl::Duration PipelineDriver::TimeToExpiryLocked() const {
  if (pipeline_.has_value() || jobs_.empty()) return absl::InfiniteDuration();
  const absl::Duration waits_since =
      std::max(jobs_.begin()->second.submitted_at, without_pipeline_since_);
  return waits_since + options_.pipeline_timeout - options_.clock->Now();
}

void PipelineDriver::ExpireLocked() {
  while (TimeToExpiryLocked() <= absl::ZeroDuration()) {
    jobs_.begin()->second.stream->Fail(absl::UnavailableError(absl::StrCat(
        "no pipeline came to be within ", absl::ToDoubleSeconds(options_.pipeline_timeout), " s",
        waiting_reason_.empty() ? "" : ": ", waiting_reason_)));
    jobs_.erase(jobs_.begin());
  }
}

void PipelineDriver::Run() {
  while (true) {
    Work work = WaitForWork();
    if (work.stop) return;
    if (work.breakage.has_value() && options_.on_pipeline_broken != nullptr) {
      options_.on_pipeline_broken(work.breakage->plan_version, work.breakage->why);
    }
    if (work.idle && options_.on_idle != nullptr) options_.on_idle();
    if (work.step.has_value()) {
      const uint64_t plan_version = work.step->plan_version();
      const absl::Status sent = work.first_hop->Send(*std::move(work.step));
      if (!sent.ok()) Break(plan_version, Annotate(sent, "sending a step to the first stage"));
    }
  }
}

PipelineDriver::Work PipelineDriver::WaitForWork() {
  MutexLock lock(&mu_);
  Work work;
  while (true) {
    ExpireLocked();
    if (stopping_) {
      work.stop = true;
      return work;
    }
    if (!breakages_.empty()) {
      work.breakage = breakages_.front();
      breakages_.erase(breakages_.begin());
      return work;
    }
    if (pipeline_.has_value()) {
      work.step = pipeline_->scheduler.NextStep(/*admit=*/!paused_);
      if (work.step.has_value()) {
        work.first_hop = pipeline_->first_hop;
        return work;
      }
    }
    if (tell_idle_ && IdleLocked()) {
      tell_idle_ = false;
      work.idle = true;
      return work;
    }
    changed_.WaitWithTimeout(&mu_, TimeToExpiryLocked());
  }
}

}  // namespace caravan
