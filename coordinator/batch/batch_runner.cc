#include "coordinator/batch/batch_runner.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "coordinator/batch/batch_input.h"
#include "coordinator/batch/batch_output.h"

namespace caravan {
namespace {

// Results that wait to be recorded, at most: a file of lines that all fail makes them fast.
constexpr size_t kMaxUnrecorded = 512;

// Of one result: SQLite takes no value past 10^9 bytes.
constexpr size_t kMaxResultBytes = size_t{256} << 20;

// After trouble with the store: a full disk does not empty faster.
constexpr absl::Duration kTroublePause = absl::Seconds(1);

/// A worker or the pipeline is to blame, not the line.
bool IsLoss(const absl::Status& why) {
  return absl::IsUnavailable(why) || absl::IsAborted(why) || absl::IsResourceExhausted(why);
}

}  // namespace

void BatchRunner::Inbox::AddChoice(ChoiceRef choice) {
  MutexLock lock(&mu_);
  news_.choices.push_back(choice);
  changed_.SignalAll();
}

void BatchRunner::Inbox::AddBatches() {
  MutexLock lock(&mu_);
  news_.batches = true;
  changed_.SignalAll();
}

void BatchRunner::Inbox::Stop() {
  MutexLock lock(&mu_);
  news_.stop = true;
  changed_.SignalAll();
}

BatchRunner::Inbox::News BatchRunner::Inbox::Take(absl::Duration timeout) {
  const absl::Duration deadline = SteadyClock().Now() + timeout;
  MutexLock lock(&mu_);
  while (news_.choices.empty() && !news_.batches && !news_.stop) {
    const absl::Duration left = deadline - SteadyClock().Now();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitWithTimeout(&mu_, left);
  }
  return std::exchange(news_, News{});
}

BatchRunner::BatchRunner(Options options) : options_(std::move(options)) {
  CARAVAN_CHECK(options_.max_jobs >= 1);
  options_.book->SetListener([inbox = inbox_] { inbox->AddBatches(); });
  thread_ = std::make_unique<NamedThread>("batch-runner", [this] { Run(); });
}

void BatchRunner::Stop() {
  options_.book->SetListener(nullptr);
  inbox_->Stop();
  thread_->Join();
}

void BatchRunner::Run() {
  while (true) {
    const Inbox::News news = inbox_->Take(TimeToWork());
    reload_ |= news.batches;
    for (const ChoiceRef& choice : news.choices) ReadJob(choice);
    if (news.stop) break;
    if (SteadyClock().Now() < work_at_) continue;
    const absl::Status done = Work();
    if (!done.ok()) {
      if (!std::exchange(in_trouble_, true)) {
        LogWarning("batches_wait", {{"why", done.message()}});
      }
      validation_.reset();
      work_at_ = SteadyClock().Now() + kTroublePause;
    } else if (std::exchange(in_trouble_, false)) {
      LogInfo("batches_go_on");
    }
  }
  const absl::Status recorded = Record();
  if (!recorded.ok()) LogWarning("batches_not_recorded", {{"why", recorded.message()}});
  active_.clear();
}

absl::Duration BatchRunner::TimeToWork() const {
  const absl::Duration now = SteadyClock().Now();
  absl::Duration at = absl::InfiniteDuration();
  if (has_growth_ || !results_.empty()) at = std::min(at, record_at_);
  if (num_jobs_ < options_.max_jobs && (lines_left_ || !waiting_.empty())) {
    // Full of results, it waits for them to be recorded.
    if (results_.size() < kMaxUnrecorded) at = std::min(at, feed_at_);
  }
  if (reload_ || validation_.has_value()) at = now;
  return std::max(std::max(at, work_at_) - now, absl::ZeroDuration());
}

absl::Status BatchRunner::Work() {
  if ((has_growth_ || !results_.empty()) && SteadyClock().Now() >= record_at_) {
    CARAVAN_RETURN_IF_ERROR(Record());
  }
  if (reload_) CARAVAN_RETURN_IF_ERROR(ReloadBatches());
  CARAVAN_RETURN_IF_ERROR(Validate());
  return Feed();
}

void BatchRunner::ReadJob(ChoiceRef choice) {
  const auto [id, index] = choice;
  while (true) {
    const auto it = active_.find(id);
    if (it == active_.end()) return;
    ActiveLine& active = it->second;
    std::unique_ptr<JobHandle>& job = active.jobs[index];
    if (job == nullptr) return;
    const absl::StatusOr<JobUpdate> update = job->Next(absl::ZeroDuration());
    if (!update.ok()) {
      if (IsLoss(update.status())) return LoseJob(choice);
      return EndLine(id, true, FailedLine(active.line->custom_id(), update.status()));
    }
    if (update->empty()) return;
    has_growth_ = true;
    if (!active.line->Push(index, *update)) continue;
    job = nullptr;
    --num_jobs_;
    if (active.line->done()) {
      return EndLine(id, false, CompletedLine(active.line->custom_id(), active.line->Response()));
    }
  }
}

void BatchRunner::LoseJob(ChoiceRef choice) {
  const auto [id, index] = choice;
  ActiveLine& active = active_.at(id);
  active.jobs[index] = nullptr;
  --num_jobs_;
  // Whatever the reason, it may last a moment.
  feed_at_ = SteadyClock().Now() + options_.record_interval;
  if (active.line->resumable()) {
    waiting_.push_back(choice);
  } else {
    start_over_.push_back(active.line->where());
    lines_left_ = true;
    DropJobs(active);
    active_.erase(id);
  }
}

void BatchRunner::DropJobs(ActiveLine& active) {
  for (std::unique_ptr<JobHandle>& job : active.jobs) {
    if (job == nullptr) continue;
    job = nullptr;
    --num_jobs_;
  }
}

void BatchRunner::EndLine(uint64_t id, bool failed, std::string text) {
  ActiveLine& active = active_.at(id);
  if (text.size() > kMaxResultBytes) {
    failed = true;
    text = FailedLine(active.line->custom_id(),
                      absl::OutOfRangeError(absl::StrCat("the result has ", text.size(),
                                                         " bytes, more than ", kMaxResultBytes)));
  }
  results_.push_back({active.line->where(), failed, std::move(text)});
  DropJobs(active);
  active_.erase(id);
}

absl::Status BatchRunner::Record() {
  std::vector<LineGrowth> growth;
  for (const auto& [id, active] : active_) active.line->AddGrowth(growth);
  CARAVAN_RETURN_IF_ERROR(options_.store->Record(growth, results_, UnixNow()));
  record_at_ = SteadyClock().Now() + options_.record_interval;
  for (const auto& [id, active] : active_) active.line->MarkRecorded();
  has_growth_ = false;
  std::set<int64_t> changed;
  for (const LineResult& result : results_) changed.insert(result.where.batch);
  results_.clear();
  for (const int64_t number : changed) {
    if (const OpenBatch* const batch = FindBatch(number)) options_.book->Changed(batch->id);
  }
  return absl::OkStatus();
}

absl::Status BatchRunner::ReloadBatches() {
  CARAVAN_ASSIGN_OR_RETURN(batches_, options_.store->OpenBatches());
  for (const OpenBatch& batch : batches_) {
    if (batch.status == BatchStatus::kCancelling) CARAVAN_RETURN_IF_ERROR(CancelLines(batch));
  }
  std::erase_if(last_line_, [&](const auto& entry) { return FindBatch(entry.first) == nullptr; });
  reload_ = false;
  lines_left_ = !start_over_.empty() ||
                std::any_of(batches_.begin(), batches_.end(), [](const OpenBatch& batch) {
                  return batch.status == BatchStatus::kInProgress;
                });
  return absl::OkStatus();
}

absl::Status BatchRunner::CancelLines(const OpenBatch& batch) {
  if (validation_.has_value() && validation_->batch() == batch.number) validation_.reset();
  if (!batch.begun) CARAVAN_RETURN_IF_ERROR(options_.store->ClearLines(batch.number));
  for (auto it = active_.begin(); it != active_.end();) {
    ActiveLine& active = it->second;
    if (active.line->where().batch != batch.number) {
      ++it;
      continue;
    }
    DropJobs(active);
    it = active_.erase(it);
  }
  // What has ended is not to be cancelled.
  CARAVAN_RETURN_IF_ERROR(Record());
  int64_t last = 0;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(const std::optional<BatchLine> line,
                             options_.store->NextLine(batch.number, last));
    if (line.has_value()) {
      last = line->number;
      results_.push_back({{batch.number, last}, true, CancelledLine(line->custom_id)});
    }
    if (!line.has_value() || results_.size() >= kMaxUnrecorded) CARAVAN_RETURN_IF_ERROR(Record());
    if (!line.has_value()) break;
  }
  // Where no line was left to end it.
  CARAVAN_RETURN_IF_ERROR(options_.store->EndBatch(batch.number, UnixNow()));
  options_.book->Changed(batch.id);
  return absl::OkStatus();
}

absl::Status BatchRunner::Validate() {
  if (!validation_.has_value()) {
    const auto next = std::find_if(batches_.begin(), batches_.end(), [](const OpenBatch& batch) {
      return batch.status == BatchStatus::kValidating;
    });
    if (next == batches_.end()) return absl::OkStatus();
    validation_.emplace(options_.store, *next);
  }
  CARAVAN_ASSIGN_OR_RETURN(const bool done, validation_->Step());
  if (!done) return absl::OkStatus();
  const OpenBatch* const batch = FindBatch(validation_->batch());
  validation_.reset();
  reload_ = true;
  if (batch != nullptr) options_.book->Changed(batch->id);
  return absl::OkStatus();
}

const OpenBatch* BatchRunner::FindBatch(int64_t number) const {
  const auto it = std::find_if(batches_.begin(), batches_.end(),
                               [&](const OpenBatch& batch) { return batch.number == number; });
  return it == batches_.end() ? nullptr : &*it;
}

absl::Status BatchRunner::Feed() {
  while (num_jobs_ < options_.max_jobs && (lines_left_ || !waiting_.empty())) {
    if (SteadyClock().Now() < feed_at_ || results_.size() >= kMaxUnrecorded) break;
    if (!options_.driver->CheckServing().ok()) {
      feed_at_ = SteadyClock().Now() + options_.record_interval;
    } else if (!waiting_.empty()) {
      const ChoiceRef choice = waiting_.front();
      waiting_.pop_front();
      SubmitJob(choice);
    } else {
      CARAVAN_ASSIGN_OR_RETURN(lines_left_, StartNextLine());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> BatchRunner::StartNextLine() {
  while (!start_over_.empty()) {
    const LineRef where = start_over_.front();
    const OpenBatch* const batch = FindBatch(where.batch);
    if (batch != nullptr && batch->status == BatchStatus::kInProgress) {
      CARAVAN_ASSIGN_OR_RETURN(const std::optional<BatchLine> line,
                               options_.store->NextLine(where.batch, where.line - 1));
      if (line.has_value() && line->number == where.line) {
        CARAVAN_RETURN_IF_ERROR(StartLine(*batch, *line));
        start_over_.pop_front();
        return true;
      }
    }
    start_over_.pop_front();  // it was cancelled
  }
  for (const OpenBatch& batch : batches_) {
    if (batch.status != BatchStatus::kInProgress) continue;
    int64_t& last_line = last_line_[batch.number];
    CARAVAN_ASSIGN_OR_RETURN(const std::optional<BatchLine> line,
                             options_.store->NextLine(batch.number, last_line));
    if (!line.has_value()) continue;
    CARAVAN_RETURN_IF_ERROR(StartLine(batch, *line));
    last_line = line->number;
    return true;
  }
  return false;
}

absl::Status BatchRunner::StartLine(const OpenBatch& batch, const BatchLine& line) {
  const LineRef where = {batch.number, line.number};
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<LineGrowth> growth, options_.store->ReadGrowth(where));
  absl::StatusOr<std::unique_ptr<RunningLine>> running =
      RunningLine::Create(where, line, *BatchApi(batch.endpoint), options_.model, growth);
  if (!running.ok()) {
    results_.push_back({where, true, FailedLine(line.custom_id, running.status())});
    return absl::OkStatus();
  }
  const uint64_t id = next_id_++;
  ActiveLine& active = active_[id];
  active.line = *std::move(running);
  active.jobs.resize(active.line->num_choices());
  for (size_t i = 0; i < active.jobs.size(); ++i) {
    if (!active.line->done(i)) waiting_.push_back({id, i});
  }
  if (active.line->done()) {
    EndLine(id, false, CompletedLine(line.custom_id, active.line->Response()));
  }
  return absl::OkStatus();
}

void BatchRunner::SubmitJob(ChoiceRef choice) {
  const auto it = active_.find(choice.first);
  if (it == active_.end()) return;  // it was cancelled, or another choice has failed
  ActiveLine& active = it->second;
  absl::StatusOr<std::unique_ptr<JobHandle>> job =
      options_.driver->Submit(active.line->NextJob(choice.second));
  if (job.ok()) {
    active.jobs[choice.second] = *std::move(job);
    ++num_jobs_;
    active.jobs[choice.second]->SetListener([inbox = inbox_, choice] { inbox->AddChoice(choice); });
  } else if (IsLoss(job.status())) {
    // The queue is full of others' jobs, or the pipeline has gone.
    waiting_.push_back(choice);
    feed_at_ = SteadyClock().Now() + options_.record_interval;
  } else {
    EndLine(choice.first, true, FailedLine(active.line->custom_id(), job.status()));
  }
}

}  // namespace caravan
