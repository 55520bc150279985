#include "worker/experts/expert_reads.h"

#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {

absl::StatusOr<std::unique_ptr<ExpertReads>> ExpertReads::Create(const ExpertFiles& files,
                                                                 int num_frames,
                                                                 const Options& options,
                                                                 ExpertMeter& meter,
                                                                 Buffer memory) {
  const int64_t bytes = num_frames * files.max_run_bytes();
  if (memory.size() == 0) {
    CARAVAN_ASSIGN_OR_RETURN(memory, Buffer::Allocate(bytes));
  }
  CARAVAN_CHECK(memory.size() == bytes);
  memory.PreferLargePages();
  if (!memory.Lock()) {
    LogInfo("experts not locked in memory",
            {{"bytes", memory.size()}, {"reason", "the limit of locked memory"}});
  }
  ReadQueue::Options reads = options.reads;
  reads.memory = absl::MakeSpan(memory.data(), static_cast<size_t>(memory.size()));
  std::unique_ptr<ExpertReads> made(new ExpertReads(files, std::move(memory), options, meter));
  CARAVAN_ASSIGN_OR_RETURN(made->queue_, options.make_queue(reads));
  return made;
}

ExpertReads::ExpertReads(const ExpertFiles& files, Buffer memory, const Options& options,
                         ExpertMeter& meter)
    : files_(files),
      verify_(options.verify),
      meter_(meter),
      frame_bytes_(files.max_run_bytes()),
      memory_(std::move(memory)),
      frames_(static_cast<size_t>(memory_.size() / frame_bytes_)),
      verified_(static_cast<size_t>(files.num_disks()) *
                static_cast<size_t>(files.layers().back() - files.layers().front() + 1) *
                static_cast<size_t>(files.experts_per_layer())),
      bytes_under_way_(static_cast<size_t>(files.num_disks())),
      was_bad_(bytes_under_way_.size()) {
  // A frame has one read.
  taken_.reserve(frames_.size());
  MutexLock lock(&mu_);
  ended_.reserve(frames_.size());
}

Buffer ExpertReads::Release(std::unique_ptr<ExpertReads> reads) {
  reads->queue_.reset();
  return std::move(reads->memory_);
}

void ExpertReads::Adopt(int frame, ExpertKey key) { At(frame) = {.key = key, .checked = true}; }

void ExpertReads::Begin(int frame, ExpertKey key, ReadPriority priority) {
  At(frame) = {.key = key, .copy = ChooseCopy(key.layer)};
  Submit(frame, priority);
}

void ExpertReads::Again(int frame) { Submit(frame, ReadPriority::kNeeded); }

bool ExpertReads::FromOtherCopy(int frame) {
  Frame& bad = At(frame);
  const int copies = files_.num_copies(bad.key.layer);
  if (bad.bad_copies + 1 == copies) return false;
  if (!was_bad_[DiskOf(bad)]) {
    LogWarning("experts read from other copies",
               {{"instead_of", files_.PathOf(bad.key.layer, bad.copy)},
                {"layer", bad.key.layer},
                {"expert", bad.key.expert}});
  }
  was_bad_[DiskOf(bad)] = true;
  ++bad.bad_copies;
  bad.copy = (bad.copy + 1) % copies;
  bad.checked = false;
  Submit(frame, ReadPriority::kNeeded);
  meter_.Add(&ExpertCounters::failovers, 1);
  return true;
}

bool ExpertReads::Cancel(int frame) {
  if (!queue_->Cancel(At(frame).id)) return false;
  CountEnd(At(frame));
  return true;
}

absl::Duration ExpertReads::Wait() {
  const absl::Duration begin = SteadyClock().Now();
  {
    MutexLock lock(&mu_);
    while (ended_.empty()) read_ended_.Wait(&mu_);
  }
  const absl::Duration waited = SteadyClock().Now() - begin;
  meter_.AddWaited(waited);
  return waited;
}

absl::Span<const ExpertReads::Ended> ExpertReads::TakeEnded() {
  taken_.clear();
  {
    MutexLock lock(&mu_);
    taken_.swap(ended_);
  }
  for (const Ended& ended : taken_) {
    CountEnd(At(ended.frame));
    if (!ended.status.ok()) continue;
    meter_.Add(&ExpertCounters::reads, 1);
    meter_.Add(&ExpertCounters::bytes_read, files_.run_bytes(At(ended.frame).key.layer));
  }
  return taken_;
}

absl::Status ExpertReads::Check(int frame) {
  Frame& read = At(frame);
  if (std::exchange(read.checked, true) || verify_ == Verify::kNever) return absl::OkStatus();
  const int first = files_.layers().front();
  const int64_t layer = static_cast<int64_t>(DiskOf(read)) * (files_.layers().back() - first + 1) +
                        read.key.layer - first;
  std::vector<bool>::reference verified =
      verified_[static_cast<size_t>(layer * files_.experts_per_layer() + read.key.expert)];
  if (verify_ == Verify::kFirst && verified) return absl::OkStatus();
  absl::Status status = files_.CheckHash(read.key, read.copy, MemoryOf(frame));
  verified = status.ok();
  return status;
}

FfnWeights ExpertReads::WeightsAt(int frame) const {
  return files_.WeightsAt(At(frame).key, MemoryOf(frame));
}

absl::Status ExpertReads::Error(int frame, const absl::Status& status) const {
  return files_.Error(At(frame).key, At(frame).copy, status.message());
}

int ExpertReads::ChooseCopy(int layer) const {
  int best = 0;
  for (int copy = 1; copy < files_.num_copies(layer); ++copy) {
    if (bytes_under_way_[static_cast<size_t>(files_.DiskOf(layer, copy))] <
        bytes_under_way_[static_cast<size_t>(files_.DiskOf(layer, best))]) {
      best = copy;
    }
  }
  return best;
}

void ExpertReads::Submit(int frame, ReadPriority priority) {
  Frame& read = At(frame);
  ++under_way_;
  bytes_under_way_[DiskOf(read)] += files_.run_bytes(read.key.layer);
  read.id = queue_->Submit(files_.ReadOf(read.key, read.copy, MemoryOf(frame)), priority,
                           [this, frame](const absl::Status& status) {
                             MutexLock lock(&mu_);
                             ended_.push_back({frame, status});
                             read_ended_.SignalAll();
                           });
}

void ExpertReads::CountEnd(const Frame& frame) {
  --under_way_;
  bytes_under_way_[DiskOf(frame)] -= files_.run_bytes(frame.key.layer);
}

}  // namespace caravan
