#ifndef CARAVAN_COORDINATOR_BATCH_BATCH_RUNNER_H_
#define CARAVAN_COORDINATOR_BATCH_BATCH_RUNNER_H_

// Runs the lines of all batches as bulk jobs, oldest batch first, and records what comes of them.
// What a line has generated is on disk within record_interval; a line whose job is lost with a
// worker, or with this process, goes on from there. Tokens that were not recorded yet are generated
// again, and are the same, for a draw depends on nothing but seed and position.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/batch/batch_validation.h"
#include "coordinator/batch/running_line.h"
#include "coordinator/openai/generation_request.h"
#include "coordinator/pipeline_driver.h"
#include "coordinator/store/job_store.h"

namespace caravan {

/// Works from its making until Stop, on a thread of its own. What it is given must outlive it.
class BatchRunner {
 public:
  struct Options {
    JobStore* store = nullptr;
    BatchBook* book = nullptr;
    PipelineDriver* driver = nullptr;
    ServedModel model;
    int64_t max_jobs = 256;  // in the driver at a time, less than its queue takes
    absl::Duration record_interval = absl::Milliseconds(250);
  };

  /// REQUIRES: max_jobs >= 1.
  explicit BatchRunner(Options options);
  ~BatchRunner() { Stop(); }
  BatchRunner(const BatchRunner&) = delete;
  BatchRunner& operator=(const BatchRunner&) = delete;

  /// Records what there is, and takes its jobs from the driver. Another runner on the same store
  /// goes on where this one was. Idempotent.
  void Stop();

 private:
  /// A choice of a running line, by the line's id.
  using ChoiceRef = std::pair<uint64_t, size_t>;

  /// What others tell the thread. Listeners that come late keep it.
  class Inbox {
   public:
    struct News {
      std::vector<ChoiceRef> choices;  // whose jobs have news
      bool batches = false;            // came, or are to be cancelled
      bool stop = false;
    };
    void AddChoice(ChoiceRef choice);
    void AddBatches();
    void Stop();
    /// Waits for news, for at most `timeout`.
    News Take(absl::Duration timeout);

   private:
    Mutex mu_;
    CondVar changed_;
    News news_ ABSL_GUARDED_BY(mu_);
  };

  struct ActiveLine {
    std::unique_ptr<RunningLine> line;
    std::vector<std::unique_ptr<JobHandle>> jobs;  // of each choice; nullptr: none at present
  };

  void Run();
  absl::Duration TimeToWork() const;
  /// All that is to be done now. On an error, which is the store's, it is done again later.
  absl::Status Work();

  /// Reads what the choice's job has generated.
  void ReadJob(ChoiceRef choice);
  void LoseJob(ChoiceRef choice);
  void EndLine(uint64_t id, bool failed, std::string text);
  void DropJobs(ActiveLine& active);

  absl::Status Record();
  absl::Status ReloadBatches();
  absl::Status Validate();
  absl::Status CancelLines(const OpenBatch& batch);
  absl::Status Feed();
  /// False: every line of every batch runs or has ended.
  absl::StatusOr<bool> StartNextLine();
  absl::Status StartLine(const OpenBatch& batch, const BatchLine& line);
  void SubmitJob(ChoiceRef choice);
  const OpenBatch* FindBatch(int64_t number) const;

  const Options options_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();

  // The thread's.
  std::vector<OpenBatch> batches_;         // oldest first
  std::map<int64_t, int64_t> last_line_;   // that was started, by batch
  std::deque<LineRef> start_over_;         // lines that were started, and must be once more
  std::map<uint64_t, ActiveLine> active_;  // by id
  uint64_t next_id_ = 1;
  std::deque<ChoiceRef> waiting_;    // for a job
  int64_t num_jobs_ = 0;             // in the driver
  std::vector<LineResult> results_;  // to be recorded
  bool has_growth_ = false;          // that is to be recorded
  bool reload_ = true;
  std::optional<BatchValidation> validation_;
  bool lines_left_ = false;  // that could be started
  absl::Duration record_at_ = absl::ZeroDuration();
  absl::Duration feed_at_ = absl::ZeroDuration();
  absl::Duration work_at_ = absl::ZeroDuration();  // after trouble with the store
  bool in_trouble_ = false;

  std::unique_ptr<NamedThread> thread_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_BATCH_BATCH_RUNNER_H_
