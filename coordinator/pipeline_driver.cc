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

void JobHandle::SetListener(std::function<void()> on_news) {
  stream_->SetListener(std::move(on_news));
}

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
    MutexLock lock(&mu_);
    next_job_id_ = options_.first_job_id;
  }
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

void PipelineDriver::Tell(std::vector<News> news) {
  for (News& each : news) {
    if (options_.observer != nullptr) Report(each, *options_.observer);
    if (each.update.ok()) {
      each.stream->Add(*std::move(each.update));
    } else {
      each.stream->Fail(each.update.status());
    }
  }
}

void PipelineDriver::Report(const News& news, PipelineObserver& observer) {
  if (!news.update.ok()) {
    const bool cancelled = absl::IsCancelled(news.update.status());
    observer.OnJobEnded(news.priority, cancelled ? JobOutcome::kCancelled : JobOutcome::kFailed,
                        news.since_submit);
    return;
  }
  for (size_t i = 0; i < news.update->tokens.size(); ++i) {
    if (i > 0) {
      observer.OnTokenGap(news.priority, absl::ZeroDuration());
    } else if (news.gap.has_value()) {
      observer.OnTokenGap(news.priority, *news.gap);
    } else {
      observer.OnFirstToken(news.priority, news.since_submit);
    }
  }
  if (news.update->finished) {
    observer.OnJobEnded(news.priority, JobOutcome::kFinished, news.since_submit);
  }
}

PipelineDriver::News PipelineDriver::MakeNewsLocked(const Job& job,
                                                    absl::StatusOr<JobUpdate> update) const {
  const absl::Duration age = options_.clock->Now() - job.sequence.submitted_at();
  return {job.stream, std::move(update), job.sequence.spec().priority, age, std::nullopt};
}

void PipelineDriver::Shutdown() {
  const absl::Status why = absl::UnavailableError("the coordinator is shutting down");
  std::shared_ptr<ActivationChannel> first_hop;
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    first_hop = DetachLocked(why, Patience::kEndless, news);
    for (const auto& [id, job] : jobs_) news.push_back(MakeNewsLocked(job, why));
    jobs_.clear();
    changed_.SignalAll();
  }
  Tell(std::move(news));
  if (first_hop != nullptr) first_hop->Close();
}

void PipelineDriver::Attach(Pipeline pipeline) {
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    if (stopping_) return;
    CARAVAN_CHECK(!pipeline_.has_value() && pipeline.first_hop != nullptr);
    Scheduler::Options scheduling;
    scheduling.plan_version = pipeline.plan_version;
    scheduling.num_stages = pipeline.num_stages;
    scheduling.kv_blocks = pipeline.kv_blocks;
    scheduling.near_kv_blocks = pipeline.near_kv_blocks;
    scheduling.kv_block_tokens = pipeline.kv_block_tokens;
    scheduling.max_step_tokens = pipeline.max_step_tokens;
    scheduling.prefill_chunk = options_.prefill_chunk;
    scheduling.vocab_size = options_.vocab_size;
    scheduling.drafts = pipeline.drafts;
    scheduling.archive = std::move(pipeline.archive);
    pipeline_.emplace(ServingPipeline{.plan_version = pipeline.plan_version,
                                      .scheduler = Scheduler(scheduling),
                                      .first_hop = std::move(pipeline.first_hop)});
    for (auto it = jobs_.begin(); it != jobs_.end();) {
      Job& job = it->second;
      if (const absl::Status fits = pipeline_->scheduler.CheckFits(job.sequence); fits.ok()) {
        pipeline_->scheduler.Enqueue(&job.sequence);
        ++it;
      } else {
        news.push_back(MakeNewsLocked(job, fits));
        it = jobs_.erase(it);
      }
    }
    changed_.SignalAll();
  }
  Tell(std::move(news));
}

void PipelineDriver::Quiesce(uint64_t plan_version, uint64_t next_version) {
  CARAVAN_CHECK(next_version > 0);
  MutexLock lock(&mu_);
  if (!pipeline_.has_value() || pipeline_->plan_version != plan_version) return;
  if (pipeline_->runs_dry_for == next_version) return;
  pipeline_->runs_dry_for = next_version;
  pipeline_->is_quiet = false;
  changed_.SignalAll();
}

void PipelineDriver::GoOn() {
  MutexLock lock(&mu_);
  if (!pipeline_.has_value()) return;
  pipeline_->runs_dry_for = 0;
  pipeline_->is_quiet = false;
  changed_.SignalAll();
}

void PipelineDriver::SetArchiveCapacity(uint64_t plan_version, int64_t capacity) {
  MutexLock lock(&mu_);
  if (!pipeline_.has_value() || pipeline_->plan_version != plan_version) return;
  pipeline_->scheduler.SetArchiveCapacity(capacity);
}

void PipelineDriver::Detach(const absl::Status& why) {
  std::shared_ptr<ActivationChannel> first_hop;
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    // A plan that makes way for another was not broken by what ran over it.
    first_hop =
        DetachLocked(why, absl::IsAborted(why) ? Patience::kEndless : Patience::kSome, news);
  }
  Tell(std::move(news));
  if (first_hop != nullptr) first_hop->Close();
}

void PipelineDriver::Break(uint64_t plan_version, const absl::Status& why) {
  std::shared_ptr<ActivationChannel> first_hop;
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    if (!pipeline_.has_value() || pipeline_->plan_version != plan_version) return;
    first_hop = DetachLocked(why, Patience::kSome, news);
    breakages_.push_back({plan_version, why});
  }
  Tell(std::move(news));
  first_hop->Close();
}

std::shared_ptr<ActivationChannel> PipelineDriver::DetachLocked(const absl::Status& why,
                                                                Patience patience,
                                                                std::vector<News>& news) {
  CARAVAN_CHECK(!why.ok());
  if (!pipeline_.has_value()) return nullptr;
  std::shared_ptr<ActivationChannel> first_hop = std::move(pipeline_->first_hop);
  past_counters_ += pipeline_->scheduler.counters();
  InterruptLocked(pipeline_->scheduler.Release(), why, patience, news);
  pipeline_.reset();
  without_pipeline_since_ = options_.clock->Now();
  changed_.SignalAll();
  return first_hop;
}

PipelineDriver::Patience PipelineDriver::PatienceAfter(const absl::Status& step_error) {
  if (absl::IsInvalidArgument(step_error)) return Patience::kNone;
  // An archive lacked what was to be restored. Nothing is restored now.
  return absl::IsNotFound(step_error) ? Patience::kEndless : Patience::kSome;
}

void PipelineDriver::InterruptLocked(const std::vector<Sequence*>& sequences,
                                     const absl::Status& why, Patience patience,
                                     std::vector<News>& news) {
  interruptions_ += std::ssize(sequences);
  if (patience == Patience::kEndless) return;
  std::vector<Suspicion*> suspicions;
  for (Sequence* const sequence : sequences) suspicions.push_back(&sequence->suspicion());
  Suspicion::Interrupt(suspicions);
  for (Sequence* const sequence : sequences) {
    const Suspicion& suspicion = sequence->suspicion();
    if (patience == Patience::kSome && !suspicion.is_hopeless()) continue;
    const auto it = jobs_.find(sequence->id());
    news.push_back(MakeNewsLocked(
        it->second, patience == Patience::kNone
                        ? why
                        : Annotate(why, absl::StrCat("interrupted ", suspicion.interruptions(),
                                                     " times without a token between"))));
    pipeline_->scheduler.Cancel(sequence);
    jobs_.erase(it);
  }
}

absl::Status PipelineDriver::Receive(v1::Step step) {
  absl::Status broken;
  absl::Duration round_trip;
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    if (!pipeline_.has_value() || pipeline_->plan_version != step.plan_version()) {
      return absl::AbortedError(absl::StrCat(
          "step ", step.step_id(), " belongs to plan ", step.plan_version(),
          pipeline_.has_value() ? absl::StrCat(", the present one is ", pipeline_->plan_version)
                                : std::string(", and there is none at present")));
    }
    // Without a step in flight it is refused.
    if (!pipeline_->sent_at.empty()) {
      round_trip = options_.clock->Now() - pipeline_->sent_at.front();
    }
    auto returned = pipeline_->scheduler.TakeIn(step, round_trip);
    if (returned.ok()) {
      std::vector<Sequence*> failed;
      for (const Scheduler::ReturnedSlice& slice : *returned) {
        if (slice.result == nullptr) {
          failed.push_back(slice.sequence);
        } else {
          news.push_back(TakeInLocked(slice));
        }
      }
      if (!failed.empty()) {
        const absl::Status why = ToStatus(step.error());
        InterruptLocked(failed, why, PatienceAfter(why), news);
      }
      pipeline_->sent_at.pop_front();
      changed_.SignalAll();
    } else {
      broken = returned.status();
    }
  }
  if (!broken.ok()) {
    Break(step.plan_version(), broken);
    return broken;
  }
  Tell(std::move(news));
  if (options_.observer != nullptr && !step.slices().empty()) {
    int64_t rows = 0;
    for (const v1::SequenceSlice& slice : step.slices()) rows += slice.token_ids_size();
    options_.observer->OnStepReturned(rows, round_trip);
  }
  return absl::OkStatus();
}

void PipelineDriver::AddPromptYield(const Scheduler::ReturnedSlice& returned, int64_t vocab_size,
                                    Job& job, JobUpdate& update) {
  const v1::SliceResult& result = *returned.result;
  const auto rows_to_skip = [&](int64_t rows) {
    const int64_t told = std::clamp<int64_t>(job.told_rows - returned.first_position, 0, rows);
    job.told_rows = std::max(job.told_rows, returned.first_position + rows);
    return told;
  };
  if (job.sequence.spec().prompt_logits) {
    update.logits = DecodeLogits(result.logits());
    const auto rows = static_cast<int64_t>(update.logits.size()) / vocab_size;
    const int64_t told = rows_to_skip(rows);
    update.first_logits_position = returned.first_position + told;
    update.logits.erase(update.logits.begin(), update.logits.begin() + told * vocab_size);
  }
  if (result.scored_size() > 0) {
    for (int64_t i = rows_to_skip(result.scored_size()); i < result.scored_size(); ++i) {
      update.prompt_scores.push_back(FromProto(result.scored(static_cast<int>(i))));
    }
  }
}

PipelineDriver::News PipelineDriver::TakeInLocked(const Scheduler::ReturnedSlice& returned) {
  const Sequence& sequence = *returned.sequence;
  const auto it = jobs_.find(sequence.id());
  Job& job = it->second;
  News news = MakeNewsLocked(job, JobUpdate{});
  JobUpdate& update = *news.update;
  update.cached_prompt_tokens = sequence.reused_tokens();
  AddPromptYield(returned, options_.vocab_size, job, update);
  for (int i = 0; i < returned.num_tokens; ++i) {
    update.tokens.push_back(FromProto(returned.result->sampled(i)));
  }
  if (sequence.state() == SequenceState::kFinished) {
    update.finished = true;
    update.reason = sequence.finish_reason();
  }
  if (!update.empty()) job.sequence.suspicion().Clear();
  if (!update.tokens.empty()) {
    const absl::Duration now = options_.clock->Now();
    if (job.last_token_at.has_value()) {
      news.gap = now - *job.last_token_at;
    } else {
      prompt_tokens_ += sequence.prompt_tokens();
    }
    job.last_token_at = now;
    generated_tokens_ += static_cast<int64_t>(update.tokens.size());
  }
  if (!sequence.running()) jobs_.erase(it);
  return news;
}

uint64_t PipelineDriver::NewJobId() {
  MutexLock lock(&mu_);
  return next_job_id_++;
}

uint64_t PipelineDriver::next_job_id() const {
  MutexLock lock(&mu_);
  return next_job_id_;
}

absl::StatusOr<std::unique_ptr<JobHandle>> PipelineDriver::Submit(JobSpec spec) {
  CARAVAN_RETURN_IF_ERROR(CheckJobSpec(spec, options_.vocab_size, options_.context_tokens));
  const int64_t room = options_.context_tokens - static_cast<int64_t>(spec.prompt.size());
  spec.max_new_tokens = std::min(spec.max_new_tokens, room);
  const bool generates = spec.max_new_tokens > static_cast<int64_t>(spec.reply.size());

  MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("the coordinator is shutting down");
  const uint64_t id = spec.id != 0 ? spec.id : next_job_id_++;
  if (!generates && !spec.prompt_logits && !spec.score_prompt) {
    auto stream = std::make_shared<JobStream>();
    JobUpdate nothing;
    nothing.finished = true;
    nothing.reason = v1::FINISH_REASON_LENGTH;
    stream->Add(std::move(nothing));
    return std::make_unique<JobHandle>(id, std::move(stream), link_);
  }
  const auto num_queued = std::count_if(jobs_.begin(), jobs_.end(), [](const auto& entry) {
    return entry.second.sequence.state() == SequenceState::kQueued;
  });
  if (num_queued >= options_.max_queued_jobs) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", num_queued, " jobs wait"));
  }
  const auto [it, is_new] = jobs_.try_emplace(id, id, std::move(spec), options_.clock->Now());
  CARAVAN_CHECK(is_new);
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
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    const auto it = jobs_.find(job_id);
    if (it == jobs_.end()) {
      return absl::NotFoundError(absl::StrCat("no job ", job_id, " is queued or running"));
    }
    news.push_back(MakeNewsLocked(
        it->second, absl::CancelledError(absl::StrCat("job ", job_id, " was cancelled"))));
    if (pipeline_.has_value()) pipeline_->scheduler.Cancel(&it->second.sequence);
    jobs_.erase(it);
    changed_.SignalAll();
  }
  Tell(std::move(news));
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
    summary.set_max_tokens(static_cast<uint32_t>(job.sequence.spec().max_new_tokens));
    summary.set_age_s(absl::ToDoubleSeconds(options_.clock->Now() - job.sequence.submitted_at()));
  }
  return summaries;
}

PipelineStats PipelineDriver::stats() const {
  MutexLock lock(&mu_);
  PipelineStats stats;
  Scheduler::Counters counters = past_counters_;
  if (pipeline_.has_value()) {
    const BlockManager& blocks = pipeline_->scheduler.blocks();
    counters += pipeline_->scheduler.counters();
    stats.steps_in_flight = static_cast<int64_t>(pipeline_->sent_at.size());
    stats.speculating = pipeline_->scheduler.speculating();
    stats.kv_blocks_total = blocks.num_blocks();
    stats.kv_blocks_used = blocks.num_blocks() - blocks.free_blocks();
    stats.kv_blocks_cached = blocks.cached_blocks();
  }
  stats.prompt_tokens = prompt_tokens_;
  stats.generated_tokens = generated_tokens_;
  stats.prefix_cache_query_tokens = counters.prefix_query_tokens;
  stats.prefix_cache_hit_tokens = counters.prefix_hit_tokens;
  stats.preemptions = counters.preemptions;
  stats.interruptions = interruptions_;
  stats.steps = counters.steps;
  stats.draft_tokens = counters.draft_tokens;
  stats.draft_accepted_tokens = counters.draft_accepted_tokens;
  for (const auto& [id, job] : jobs_) {
    const bool bulk = job.sequence.spec().priority == JobPriority::kBulk;
    JobCounts& counts = bulk ? stats.bulk : stats.interactive;
    ++(job.sequence.running() ? counts.running : counts.queued);
  }
  return stats;
}

absl::Status PipelineDriver::CheckServing() const {
  MutexLock lock(&mu_);
  if (pipeline_.has_value()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("no pipeline serves at present",
                                             waiting_reason_.empty() ? "" : ": ", waiting_reason_));
}

void PipelineDriver::PauseAdmission() {
  MutexLock lock(&mu_);
  paused_ = true;
}

void PipelineDriver::ResumeAdmission() {
  MutexLock lock(&mu_);
  paused_ = false;
  changed_.SignalAll();
}

bool PipelineDriver::Idle() const {
  MutexLock lock(&mu_);
  return !pipeline_.has_value() || pipeline_->scheduler.Idle();
}

void PipelineDriver::SetWaitingReason(std::string reason) {
  MutexLock lock(&mu_);
  waiting_reason_ = std::move(reason);
}

void PipelineDriver::KeepWaiting() {
  MutexLock lock(&mu_);
  without_pipeline_since_ = options_.clock->Now();
  changed_.SignalAll();
}

void PipelineDriver::Tick() {
  std::vector<News> news;
  {
    MutexLock lock(&mu_);
    ExpireLocked(news);
  }
  Tell(std::move(news));
}

// Without a pipeline every job is queued.
absl::Duration PipelineDriver::TimeToExpiryLocked(const Job& job) const {
  const absl::Duration waits_since = std::max(job.sequence.submitted_at(), without_pipeline_since_);
  return waits_since + options_.pipeline_timeout - options_.clock->Now();
}

absl::Duration PipelineDriver::ExpireLocked(std::vector<News>& news) {
  absl::Duration next = absl::InfiniteDuration();
  if (pipeline_.has_value()) return next;
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    const absl::Duration left = TimeToExpiryLocked(it->second);
    if (left > absl::ZeroDuration()) {
      next = std::min(next, left);
      ++it;
      continue;
    }
    news.push_back(MakeNewsLocked(
        it->second,
        absl::UnavailableError(absl::StrCat(
            "no pipeline came to be within ", absl::ToDoubleSeconds(options_.pipeline_timeout),
            " s", waiting_reason_.empty() ? "" : ": ", waiting_reason_))));
    it = jobs_.erase(it);
  }
  return next;
}

void PipelineDriver::Run() {
  while (true) {
    Work work = WaitForWork();
    if (work.breakage.has_value() && options_.on_pipeline_broken != nullptr) {
      options_.on_pipeline_broken(work.breakage->plan_version, work.breakage->why);
    }
    if (work.quiet.has_value() && options_.on_quiet != nullptr) {
      options_.on_quiet(work.quiet->plan_version, work.quiet->next_version);
    }
    Tell(std::move(work.news));
    if (work.stop) return;
    if (work.step.has_value()) {
      const uint64_t plan_version = work.step->plan_version();
      const absl::Status sent = work.first_hop->Send(*std::move(work.step));
      if (!sent.ok()) Break(plan_version, Annotate(sent, "sending a step to the first stage"));
    }
  }
}

std::optional<v1::Step> PipelineDriver::NextStepLocked(ServingPipeline& pipeline, Work& work) {
  if (pipeline.runs_dry_for == 0) return pipeline.scheduler.NextStep(/*admit=*/!paused_);
  std::optional<v1::Step> last = pipeline.scheduler.ArchivingStep();
  if (!last.has_value() && pipeline.sent_at.empty() && !pipeline.is_quiet) {
    pipeline.is_quiet = true;
    work.quiet = Quiet{pipeline.plan_version, pipeline.runs_dry_for};
  }
  return last;
}

PipelineDriver::Work PipelineDriver::WaitForWork() {
  MutexLock lock(&mu_);
  Work work;
  while (true) {
    const absl::Duration to_expiry = ExpireLocked(work.news);
    work.stop = stopping_;
    if (work.stop || !work.news.empty()) return work;
    if (!breakages_.empty()) {
      work.breakage = breakages_.front();
      breakages_.erase(breakages_.begin());
      return work;
    }
    if (pipeline_.has_value()) {
      work.step = NextStepLocked(*pipeline_, work);
      if (work.quiet.has_value()) return work;
      if (work.step.has_value()) {
        work.first_hop = pipeline_->first_hop;
        pipeline_->sent_at.push_back(options_.clock->Now());
        return work;
      }
    }
    changed_.WaitWithTimeout(&mu_, to_expiry);
  }
}

}  // namespace caravan
