#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_READS_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_READS_H_

// The memory that experts are read to, in frames of one expert each, and the reads that fill it. It
// does not know what an expert is read for, nor which may go.
//
// Where experts lie on several disks, a read goes to the one that has least to read. A read that
// was bad may be made anew from another copy.
//
// Used by one thread. Once made it takes no memory of its own but for messages, and the 32 digits
// of a hash while that is compared.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/buffer.h"
#include "base/io/read_queue.h"
#include "base/mutex.h"
#include "kernels/expert_batches.h"
#include "worker/experts/expert_counters.h"
#include "worker/experts/expert_files.h"
#include "worker/experts/expert_key.h"

namespace caravan {

class ExpertReads {
 public:
  /// When the bytes of an expert that was read are compared with their hash.
  enum class Verify { kNever, kFirst, kEvery };

  struct Options {
    Verify verify = Verify::kFirst;
    ReadQueue::Options reads;  // but for `memory`, which is the frames'
    std::function<absl::StatusOr<std::unique_ptr<ReadQueue>>(const ReadQueue::Options&)>
        make_queue = ReadQueue::Create;
  };

  struct Ended {
    int frame = 0;
    absl::Status status;
  };

  /// `memory`: of so many frames, in which experts may lie already (Adopt); empty: it takes that
  /// itself. `files` and `meter` outlive the result.
  /// Errors: ResourceExhausted - no memory; as make_queue.
  static absl::StatusOr<std::unique_ptr<ExpertReads>> Create(const ExpertFiles& files,
                                                             int num_frames, const Options& options,
                                                             ExpertMeter& meter,
                                                             Buffer memory = {});
  /// Ends all reads, waiting for those that have begun, and gives the frames' memory away.
  static Buffer Release(std::unique_ptr<ExpertReads> reads);
  ExpertReads(const ExpertReads&) = delete;
  ExpertReads& operator=(const ExpertReads&) = delete;

  int num_frames() const { return static_cast<int>(frames_.size()); }
  int64_t num_bytes() const { return memory_.size(); }
  /// Where the frames lie, one after another.
  std::byte* memory() const { return memory_.data(); }
  /// What reads. Lives as long as this object.
  ReadQueue& queue() { return *queue_; }

  /// An expert lies in the frame whose bytes were checked before. REQUIRES: as Begin.
  void Adopt(int frame, ExpertKey key);
  /// Begins to read an expert to a frame. REQUIRES: no read to that is under way.
  void Begin(int frame, ExpertKey key, ReadPriority priority);
  /// The same expert from the same copy, as needed. REQUIRES: as Begin.
  void Again(int frame);
  /// The same expert from another copy, as needed; false: all were tried. REQUIRES: as Begin.
  bool FromOtherCopy(int frame);
  /// Needed from now on. REQUIRES: the read is under way.
  void Promote(int frame) { queue_->Promote(At(frame).id); }
  /// Takes a read back; false: it has begun. REQUIRES: it is under way.
  bool Cancel(int frame);

  /// Of those that Ended was not yet told of.
  int num_under_way() const { return under_way_; }
  /// Until one has ended. Returns how long that took. REQUIRES: one is under way.
  absl::Duration Wait();
  /// Those that have ended since the last call. Good until the next one.
  absl::Span<const Ended> TakeEnded();

  /// As `verify` asks. REQUIRES: the frame's read ended well.
  /// Errors: as ExpertFiles::CheckHash.
  absl::Status Check(int frame);
  /// Whether Check was called, and nothing was read there since. REQUIRES: as Check.
  bool IsChecked(int frame) const { return At(frame).checked; }
  /// Of what was read there. REQUIRES: as Check.
  FfnWeights WeightsAt(int frame) const;
  /// Of a read that failed so. Errors: as ExpertFiles::Error, of the copy that it was of.
  absl::Status Error(int frame, const absl::Status& status) const;

 private:
  struct Frame {
    ExpertKey key;
    ReadQueue::Id id = 0;  // of its last read
    int copy = 0;          // of its file: where that is, or was, from
    int bad_copies = 0;    // that were tried before
    bool checked = false;  // as `verify` asks
  };

  ExpertReads(const ExpertFiles& files, Buffer memory, const Options& options, ExpertMeter& meter);

  Frame& At(int frame) { return frames_[static_cast<size_t>(frame)]; }
  const Frame& At(int frame) const { return frames_[static_cast<size_t>(frame)]; }
  std::byte* MemoryOf(int frame) const { return memory_.data() + frame * frame_bytes_; }
  size_t DiskOf(const Frame& frame) const {
    return static_cast<size_t>(files_.DiskOf(frame.key.layer, frame.copy));
  }
  /// The copy on the disk that has least to read.
  int ChooseCopy(int layer) const;
  void Submit(int frame, ReadPriority priority);
  void CountEnd(const Frame& frame);

  const ExpertFiles& files_;
  const Verify verify_;
  ExpertMeter& meter_;
  const int64_t frame_bytes_;
  Buffer memory_;
  std::vector<Frame> frames_;
  int under_way_ = 0;
  std::vector<bool> verified_;  // by disk, layer - first and expert: its hash was right once
  std::vector<int64_t> bytes_under_way_;  // by disk
  std::vector<bool> was_bad_;             // by disk: which the log says once
  std::vector<Ended> taken_;

  Mutex mu_;
  CondVar read_ended_;
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<ReadQueue> queue_;  // last, so that it ends first: its threads use the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_READS_H_
