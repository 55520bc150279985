#ifndef CARAVAN_COORDINATOR_PIPELINE_DRIVER_H_
#define CARAVAN_COORDINATOR_PIPELINE_DRIVER_H_

// Runs jobs over the pipeline of the present plan: keeps steps in flight, hands out what comes
// home. Knows no worker, no plan but its version, and no wire but the first hop's sending end.
//
//                    Attach
//   without pipeline ------> serving      Jobs outlive pipelines: one that runs when its pipeline
//                    <------              goes is queued again, and goes on from the tokens that it
//       Detach, or a pipeline that broke  has. All wait for the next one, for pipeline_timeout.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "caravan/v1/jobs.pb.h"
#include "caravan/v1/pipeline.pb.h"
#include "cluster/activation_channel.h"
#include "coordinator/job.h"
#include "coordinator/job_stream.h"
#include "coordinator/pipeline_observer.h"
#include "coordinator/pipeline_stats.h"
#include "coordinator/scheduler.h"
#include "coordinator/sequence.h"

namespace caravan {

class PipelineDriver;

/// The way from a JobHandle to its driver, which may go first.
struct DriverLink {
  Mutex mu;
  PipelineDriver* driver ABSL_GUARDED_BY(mu) = nullptr;
};

/// One submitted job, for its reader. Destroying it before the end cancels the job. May outlive the
/// driver. Cancel is called by any thread, everything else by one.
class JobHandle {
 public:
  JobHandle(uint64_t id, std::shared_ptr<JobStream> stream, std::shared_ptr<DriverLink> link);
  ~JobHandle() { Cancel(); }
  JobHandle(const JobHandle&) = delete;
  JobHandle& operator=(const JobHandle&) = delete;

  uint64_t id() const { return id_; }

  /// Waits for news; when `timeout` passes first, an update with nothing in it. After the end the
  /// same end again. What was generated is read before an error.
  /// Errors: Cancelled - Cancel; Unavailable - no pipeline came to be in time, or the coordinator
  /// is
  ///         leaving; OutOfRange - a new plan's KV cache is too small for it; what the last Detach,
  ///         breakage or StepError said, when it seems to be the cause (suspicion.h).
  absl::StatusOr<JobUpdate> Next(absl::Duration timeout = absl::InfiniteDuration());

  /// See JobStream::SetListener. For readers that do not wait in Next.
  void SetListener(std::function<void()> on_news);

  /// Idempotent; nothing happens after the job's end.
  void Cancel();

 private:
  const uint64_t id_;
  const std::shared_ptr<JobStream> stream_;
  const std::shared_ptr<DriverLink> link_;
};

/// Thread-safe. on_pipeline_broken and on_quiet are called by the driver's own thread, without a
/// lock held, and may call anything but the destructor. The observer and the listeners of job
/// streams are called by whichever thread brings the news: they must not block, nor call the driver
/// or a JobHandle.
class PipelineDriver {
 public:
  struct Options {
    int64_t vocab_size = 0;
    int64_t context_tokens = 0;  // longest prompt with its reply
    int64_t prefill_chunk = 512;
    int64_t max_queued_jobs = 1024;
    absl::Duration pipeline_timeout = absl::Seconds(60);  // how long a job waits for a pipeline
    uint64_t first_job_id = 1;                            // of the jobs without an id of their own
    const Clock* clock = &SteadyClock();
    PipelineObserver* observer = nullptr;  // outlives the driver
    /// The pipeline of this plan is of no more use, and detached: its first hop broke, or what came
    /// home made no sense. Not called for a Detach.
    std::function<void(uint64_t plan_version, const absl::Status& why)> on_pipeline_broken;
    /// After Quiesce with the same: all steps of this plan have come home.
    std::function<void(uint64_t plan_version, uint64_t next_version)> on_quiet;
  };
  struct Pipeline {
    uint64_t plan_version = 0;
    int num_stages = 1;
    int64_t kv_blocks = 0;       // of the stage that has fewest
    int64_t near_kv_blocks = 0;  // those with the lowest numbers, which no stage has on its disk
    int64_t kv_block_tokens = 1;
    int64_t max_step_tokens = 1;
    bool drafts = false;           // the last stage has the layer of multi-token prediction
    ArchiveContents archive = {};  // of KV blocks, on the stages' disks
    std::unique_ptr<ActivationChannel> first_hop;
  };

  /// REQUIRES: vocab_size, context_tokens and prefill_chunk are at least 1.
  explicit PipelineDriver(Options options);
  /// REQUIRES: no thread is inside a method, or will be.
  ~PipelineDriver();
  PipelineDriver(const PipelineDriver&) = delete;
  PipelineDriver& operator=(const PipelineDriver&) = delete;

  /// Queued jobs start. One that can never fit the pipeline's KV cache fails.
  /// REQUIRES: no pipeline is attached; plan_version was not used before.
  void Attach(Pipeline pipeline);

  /// No further step of this plan begins. When those under way are home, and the stages have been
  /// told to archive what blocks were filled, on_quiet is called: a Detach then drops nothing.
  /// Nothing happens if another plan is attached, or none. Idempotent. `next_version`: the plan
  /// that it is for, so that an on_quiet that comes late, after GoOn, is not taken for another
  /// one's. REQUIRES: next_version > 0.
  void Quiesce(uint64_t plan_version, uint64_t next_version);
  /// Nothing came of what it ran dry for: steps begin again. Idempotent.
  void GoOn();

  /// The smallest archive of this plan's stages has room for so many KV blocks now, at least one.
  /// Nothing happens if another plan is attached, or none.
  void SetArchiveCapacity(uint64_t plan_version, int64_t capacity);

  /// Running jobs are queued again; the first hop closes. Nothing happens without a pipeline. Of
  /// Aborted (another plan takes its place) no job ever gives up.
  /// REQUIRES: !why.ok().
  void Detach(const absl::Status& why);

  /// The StepReceiver of the hop home.
  /// Errors: Aborted - a step of another plan; FailedPrecondition, Internal - as
  ///         Scheduler::TakeIn: the pipeline is broken now.
  absl::Status Receive(v1::Step step);

  /// Errors: InvalidArgument - as CheckJobSpec; OutOfRange - the job can never fit the KV cache;
  ///         ResourceExhausted - the queue is full; Unavailable - after Shutdown.
  absl::StatusOr<std::unique_ptr<JobHandle>> Submit(JobSpec spec);

  /// The job's reader gets Cancelled.
  /// Errors: NotFound - no such job is queued or running.
  absl::Status Cancel(uint64_t job_id);

  /// Queued and running jobs, by id.
  std::vector<v1::JobSummary> List() const;

  PipelineStats stats() const;

  /// OK while a pipeline is attached. Errors: Unavailable - none is, and why.
  absl::Status CheckServing() const;

  /// An id that no other job gets.
  uint64_t NewJobId();
  /// The id that NewJobId gives next.
  uint64_t next_job_id() const;

  /// While paused, queued jobs stay queued, so that the pipeline runs dry. A new pipeline starts no
  /// job either until ResumeAdmission. Both idempotent.
  void PauseAdmission();
  void ResumeAdmission();
  /// No job runs and no step is in flight.
  bool Idle() const;

  /// Why there is no pipeline, in words, for the jobs that give up waiting for one.
  void SetWaitingReason(std::string reason);

  /// The next pipeline is on its way: jobs have waited for it since now only.
  void KeepWaiting();

  /// Looks at the clock. The driver does so by itself when it has waited long enough in real time;
  /// whoever moves a simulated clock calls this.
  void Tick();

  /// Every job fails with Unavailable, the pipeline goes, and Submit refuses. Idempotent.
  void Shutdown();

 private:
  struct Job {
    Job(uint64_t id, JobSpec spec, absl::Duration submitted_at)
        : sequence(id, std::move(spec), submitted_at) {}
    Sequence sequence;
    const std::shared_ptr<JobStream> stream = std::make_shared<JobStream>();
    std::optional<absl::Duration> last_token_at;
    int64_t told_rows = 0;  // of the prompt, those whose logits or scores its reader has
  };
  struct ServingPipeline {
    uint64_t plan_version;
    Scheduler scheduler;
    std::shared_ptr<ActivationChannel> first_hop;  // shared with a Send under way
    std::deque<absl::Duration> sent_at = {};       // of the steps in flight, oldest first
    uint64_t runs_dry_for = 0;                     // a plan; 0: steps begin
    bool is_quiet = false;                         // as on_quiet was told, or will be at once
  };
  struct Breakage {
    uint64_t plan_version;
    absl::Status why;
  };
  /// What a job's reader and the observer are to be told, once no lock is held.
  struct News {
    std::shared_ptr<JobStream> stream;
    absl::StatusOr<JobUpdate> update;
    JobPriority priority;
    absl::Duration since_submit;
    std::optional<absl::Duration> gap;  // between the first new token and the one before it
  };
  struct Quiet {
    uint64_t plan_version;
    uint64_t next_version;
  };
  /// What the thread does next, without a lock.
  struct Work {
    bool stop = false;
    std::vector<News> news;
    std::optional<Breakage> breakage;
    std::optional<Quiet> quiet;
    std::optional<v1::Step> step;
    std::shared_ptr<ActivationChannel> first_hop;
  };

  /// Whether a job bears an interruption: never, as long as it may not be the cause, or as often as
  /// it comes.
  enum class Patience { kNone, kSome, kEndless };

  void Run();
  std::optional<v1::Step> NextStepLocked(ServingPipeline& pipeline, Work& work)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Work WaitForWork();
  void Break(uint64_t plan_version, const absl::Status& why);
  std::shared_ptr<ActivationChannel> DetachLocked(const absl::Status& why, Patience patience,
                                                  std::vector<News>& news)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Tell(std::vector<News> news);
  static void Report(const News& news, PipelineObserver& observer);
  News MakeNewsLocked(const Job& job, absl::StatusOr<JobUpdate> update) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static Patience PatienceAfter(const absl::Status& step_error);
  /// These, which ran together, were queued again of `why`.
  void InterruptLocked(const std::vector<Sequence*>& sequences, const absl::Status& why,
                       Patience patience, std::vector<News>& news)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// What a slice of a prompt yields of it, but for what its reader has from an earlier run.
  static void AddPromptYield(const Scheduler::ReturnedSlice& returned, int64_t vocab_size, Job& job,
                             JobUpdate& update);
  News TakeInLocked(const Scheduler::ReturnedSlice& returned) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration TimeToExpiryLocked(const Job& job) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  /// Fails what has waited too long for a pipeline; returns how long the next one may wait yet.
  absl::Duration ExpireLocked(std::vector<News>& news) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  const std::shared_ptr<DriverLink> link_ = std::make_shared<DriverLink>();

  mutable Mutex mu_;
  CondVar changed_;
  std::map<uint64_t, Job> jobs_ ABSL_GUARDED_BY(mu_);  // by id
  uint64_t next_job_id_ ABSL_GUARDED_BY(mu_) = 1;
  std::optional<ServingPipeline> pipeline_ ABSL_GUARDED_BY(mu_);
  Scheduler::Counters past_counters_ ABSL_GUARDED_BY(mu_);  // of the plans before
  int64_t prompt_tokens_ ABSL_GUARDED_BY(mu_) = 0;          // of jobs that gave their first token
  int64_t generated_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t interruptions_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Duration without_pipeline_since_ ABSL_GUARDED_BY(mu_);
  std::string waiting_reason_ ABSL_GUARDED_BY(mu_);
  std::vector<Breakage> breakages_ ABSL_GUARDED_BY(mu_);  // to be told
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PIPELINE_DRIVER_H_
