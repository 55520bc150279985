#include "worker/kv_disk.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Writes are of a page or two for each sequence of a step: so many at a time that a disk that is
// being read does not make each of them wait for the one before.
constexpr int kWriters = 8;

/// The pages that hold bytes [begin, end).
struct Pages {
  Pages(int64_t begin, int64_t end)
      : begin(begin / kDirectAlignment * kDirectAlignment), end(RoundUp(end, kDirectAlignment)) {}
  int64_t size() const { return end - begin; }

  int64_t begin;
  int64_t end;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvDisk>> KvDisk::Create(const Options& options) {
  CARAVAN_CHECK(options.num_blocks > 0 && options.row_bytes > 0);
  CARAVAN_ASSIGN_OR_RETURN(
      std::unique_ptr<DirectFile> file,
      DirectFile::CreateScratch(options.directory,
                                options.num_blocks * options.shape.disk_block_bytes()));
  CARAVAN_ASSIGN_OR_RETURN(
      Buffer memory, Buffer::Allocate(options.num_blocks * options.shape.memory_of_disk_block()));
  std::unique_ptr<KvDisk> disk(new KvDisk(options, std::move(file), std::move(memory)));
  if (options.reads == nullptr) {
    CARAVAN_ASSIGN_OR_RETURN(disk->own_reads_, ReadQueue::Create({}));
    disk->reads_ = disk->own_reads_.get();
  }
  return disk;
}

KvDisk::KvDisk(const Options& options, std::unique_ptr<DirectFile> file, Buffer memory)
    : options_(options),
      file_(std::move(file)),
      layer_bytes_(options.shape.disk_layer_bytes()),
      memory_(std::move(memory)),
      writers_(kWriters),
      reads_(options.reads) {}

KvDisk::~KvDisk() { FinishLoad().IgnoreError(); }

std::byte* KvDisk::LayerOfBlock(int64_t block, int layer) const {
  CARAVAN_CHECK(block >= 0 && block < num_blocks() && layer >= 0 &&
                layer < options_.shape.num_layers);
  return memory_.data() + (layer % 2 * num_blocks() + block) * layer_bytes_;
}

int64_t KvDisk::OffsetOf(int64_t block, int layer) const {
  return (layer * num_blocks() + block) * layer_bytes_;
}

void KvDisk::BeginStep(absl::Span<const KvBlockUse> uses) {
  // What a failed step still reads goes to the places that this one uses.
  FinishLoad().IgnoreError();
  loading_ = -1;
  uses_.assign(uses.begin(), uses.end());
  std::sort(uses_.begin(), uses_.end(),
            [](const KvBlockUse& a, const KvBlockUse& b) { return a.block < b.block; });
  size_t num_blocks = 0;
  for (const KvBlockUse& use : uses_) {
    if (num_blocks > 0 && uses_[num_blocks - 1].block == use.block) {
      KvBlockUse& same = uses_[num_blocks - 1];
      same.old_rows = std::max(same.old_rows, use.old_rows);
      same.rows = std::max(same.rows, use.rows);
    } else {
      uses_[num_blocks++] = use;
    }
  }
  uses_.resize(num_blocks);
}

absl::Status KvDisk::Load(int layer, int next) {
  if (loading_ != layer) {
    CARAVAN_RETURN_IF_ERROR(FinishLoad());
    BeginLoad(layer);
  }
  CARAVAN_RETURN_IF_ERROR(FinishLoad());
  if (next >= 0) BeginLoad(next);
  return absl::OkStatus();
}

absl::Status KvDisk::Store(int layer) {
  std::vector<absl::Status> results(uses_.size());
  writers_.ParallelFor(static_cast<int64_t>(uses_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const KvBlockUse& use = uses_[static_cast<size_t>(i)];
      if (use.rows == use.old_rows) continue;
      const Pages pages(use.old_rows * options_.row_bytes, use.rows * options_.row_bytes);
      const std::byte* const data = LayerOfBlock(use.block, layer) + pages.begin;
      absl::Status& result = results[static_cast<size_t>(i)];
      for (int tries = 0; tries == 0 || (!result.ok() && tries < ReadQueue::Options().tries);
           ++tries) {
        result = file_->Write(OffsetOf(use.block, layer) + pages.begin,
                              absl::MakeConstSpan(data, static_cast<size_t>(pages.size())));
      }
    }
  });
  for (const absl::Status& result : results) {
    CARAVAN_RETURN_IF_ERROR(Annotate(result, "the KV cache on disk"));
  }
  return absl::OkStatus();
}

void KvDisk::BeginLoad(int layer) {
  loading_ = layer;
  size_t first = 0;
  while (first < uses_.size()) {
    // Neighbours are read at once, as far as all of a block but its last rows is wanted.
    size_t last = first;
    while (last + 1 < uses_.size() && uses_[last + 1].block == uses_[last].block + 1 &&
           uses_[last].old_rows * options_.row_bytes == options_.shape.layer_bytes) {
      ++last;
    }
    const Pages tail(0, uses_[last].old_rows * options_.row_bytes);
    const int64_t bytes = static_cast<int64_t>(last - first) * layer_bytes_ + tail.size();
    const int64_t block = uses_[first].block;
    first = last + 1;
    if (bytes == 0) continue;
    {
      MutexLock lock(&mu_);
      ++reads_under_way_;
    }
    FileRead read;
    read.file = file_.get();
    read.offset = OffsetOf(block, layer);
    read.out = absl::MakeSpan(LayerOfBlock(block, layer), static_cast<size_t>(bytes));
    reads_->Submit(read, ReadPriority::kNeeded, [this](const absl::Status& status) {
      MutexLock lock(&mu_);
      --reads_under_way_;
      read_status_.Update(status);
      read_ended_.SignalAll();
    });
  }
}

absl::Status KvDisk::FinishLoad() {
  MutexLock lock(&mu_);
  while (reads_under_way_ > 0) read_ended_.Wait(&mu_);
  return Annotate(std::exchange(read_status_, absl::OkStatus()), "the KV cache on disk");
}

absl::Status KvDisk::ReadLayer(int64_t block, int layer) {
  const int64_t rows = options_.shape.layer_bytes / options_.row_bytes;
  const KvBlockUse use = {block, rows, rows};
  BeginStep(absl::MakeConstSpan(&use, 1));
  return Load(layer, -1);
}

absl::Status KvDisk::WriteLayer(int64_t block, int layer) {
  const KvBlockUse use = {block, 0, options_.shape.layer_bytes / options_.row_bytes};
  BeginStep(absl::MakeConstSpan(&use, 1));
  return Store(layer);
}

}  // namespace caravan
