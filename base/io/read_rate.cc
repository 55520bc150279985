#include "base/io/read_rate.h"

#include <algorithm>
#include <memory>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/int_math.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

int64_t ReadsAtOnce(const ReadLoad& load) {
  return CeilDiv(load.queue.depth * load.queue.piece_bytes, load.read_bytes) + 1;
}

/// Keeps so many reads going: each that ends begins another in its place. Thread-safe.
class Reader {
 public:
  Reader(const DirectFile& file, const ReadLoad& load, absl::Span<std::byte> memory,
         std::stop_token stop)
      : file_(file), load_(load), memory_(memory), stop_(std::move(stop)) {}

  /// Waits until all of them have ended.
  absl::StatusOr<double> BytesPerSecond(ReadQueue& queue) {
    const absl::Duration started = SteadyClock().Now();
    {
      MutexLock lock(&mu_);
      started_ = started;
      going_ = ReadsAtOnce(load_);
    }
    for (int64_t place = 0; place < ReadsAtOnce(load_); ++place) Begin(queue, place);
    MutexLock lock(&mu_);
    while (going_ > 0) ended_.Wait(&mu_);
    CARAVAN_RETURN_IF_ERROR(status_);
    if (stop_.stop_requested()) return absl::CancelledError("measuring was stopped");
    return static_cast<double>(bytes_) / absl::ToDoubleSeconds(counted_until_ - counted_from_);
  }

 private:
  void Begin(ReadQueue& queue, int64_t place) {
    const size_t bytes = static_cast<size_t>(load_.read_bytes);
    FileRead read = {&file_, 0, memory_.subspan(static_cast<size_t>(place) * bytes, bytes)};
    {
      MutexLock lock(&mu_);
      const int64_t places = (file_.bytes() - load_.read_bytes) / kDirectAlignment + 1;
      read.offset =
          std::uniform_int_distribution<int64_t>(0, places - 1)(random_) * kDirectAlignment;
    }
    queue.Submit(read, ReadPriority::kNeeded, [this, &queue, place](const absl::Status& status) {
      if (GoesOn(status)) Begin(queue, place);
    });
  }

  /// Notes that a read has ended. Returns whether another shall begin.
  bool GoesOn(const absl::Status& status) {
    const absl::Duration now = SteadyClock().Now();
    MutexLock lock(&mu_);
    status_.Update(status);
    const bool over = enough_ || !status_.ok() || stop_.stop_requested();
    if (!over) {
      // From the end of a read to the end of another, both in full swing.
      if (counts_) {
        bytes_ += load_.read_bytes;
        counted_until_ = now;
        enough_ = now - counted_from_ >= load_.duration;
      } else if (++warmed_up_ == ReadsAtOnce(load_) || now - started_ >= load_.duration) {
        counts_ = true;
        counted_from_ = now;
      }
      if (!enough_) return true;
    }
    if (--going_ == 0) ended_.SignalAll();
    return false;
  }

  const DirectFile& file_;
  const ReadLoad& load_;
  const absl::Span<std::byte> memory_;
  const std::stop_token stop_;

  Mutex mu_;
  CondVar ended_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  int64_t going_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t warmed_up_ ABSL_GUARDED_BY(mu_) = 0;  // reads
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool counts_ ABSL_GUARDED_BY(mu_) = false;
  bool enough_ ABSL_GUARDED_BY(mu_) = false;
  absl::Duration started_ ABSL_GUARDED_BY(mu_);
  absl::Duration counted_from_ ABSL_GUARDED_BY(mu_);
  absl::Duration counted_until_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::vector<ReadLoad> ReadLoads(absl::Span<const int64_t> piece_bytes, absl::Span<const int> depths,
                                absl::Duration duration, int64_t read_bytes) {
  std::vector<ReadLoad> loads;
  for (const int64_t piece : piece_bytes) {
    for (const int depth : depths) {
      ReadLoad& load = loads.emplace_back();
      load.read_bytes = read_bytes > 0 ? read_bytes : piece;
      load.queue.piece_bytes = piece;
      load.queue.depth = depth;
      load.duration = duration;
    }
  }
  return loads;
}

int64_t MemoryOf(absl::Span<const ReadLoad> loads) {
  int64_t bytes = 0;
  for (const ReadLoad& load : loads) bytes = std::max(bytes, MemoryOf(load));
  return bytes;
}

int64_t MemoryOf(const ReadLoad& load) { return ReadsAtOnce(load) * load.read_bytes; }

absl::StatusOr<ReadRate> MeasureReadRate(const DirectFile& file, const ReadLoad& load,
                                         absl::Span<std::byte> memory, std::stop_token stop) {
  CARAVAN_CHECK(load.read_bytes > 0 && file.bytes() >= load.read_bytes);
  CARAVAN_CHECK(static_cast<int64_t>(memory.size()) >= MemoryOf(load));
  Reader reader(file, load, memory, std::move(stop));
  ReadQueue::Options options = load.queue;
  options.memory = memory.subspan(0, static_cast<size_t>(MemoryOf(load)));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ReadQueue> queue, ReadQueue::Create(options));
  CARAVAN_ASSIGN_OR_RETURN(const double bytes_per_second, reader.BytesPerSecond(*queue));
  return ReadRate{1e-9 * bytes_per_second, std::string(queue->Name())};
}

}  // namespace caravan
