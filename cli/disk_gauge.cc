#include "cli/disk_gauge.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/fio.h"
#include "model/pack/pack_manifest.h"
#include "model/stage_spec.h"
#include "worker/experts/expert_files.h"

namespace caravan {
namespace {

/// Of fio's process: its buffers, libraries and shared memory.
constexpr int64_t kFioBytes = int64_t{64} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<DiskGauge>> DiskGauge::Create(const StoredModel& model,
                                                             const Options& options) {
  if (options.fio) CARAVAN_RETURN_IF_ERROR(CheckFio());
  std::unique_ptr<DiskGauge> gauge(new DiskGauge(options));
  gauge->load_.duration = options.duration;
  const ModelConfig& config = model.config();
  for (const int layer : ExpertFiles::LayersOf(config, {0, config.num_hidden_layers, true, true})) {
    const ExpertFile* const experts = model.FindExperts(layer);
    if (experts == nullptr) break;
    CARAVAN_ASSIGN_OR_RETURN(gauge->files_.emplace_back(), DirectFile::Open(experts->path));
    gauge->load_.read_bytes = std::max(gauge->load_.read_bytes, experts->experts.stride);
  }
  if (gauge->files_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        model.path(), ": is no packed model with routed experts; caravan pack or synth makes one"));
  }
  CARAVAN_ASSIGN_OR_RETURN(gauge->memory_, Buffer::Allocate(MemoryOf(gauge->load_)));
  gauge->memory_.PreferLargePages();
  return gauge;
}

absl::StatusOr<DiskGauge::Rate> DiskGauge::Measure() {
  const DirectFile& file = *files_[next_file_++ % files_.size()];
  Rate rate;
  CARAVAN_ASSIGN_OR_RETURN(
      const ReadRate ours,
      MeasureReadRate(file, load_, {memory_.data(), static_cast<size_t>(memory_.size())}, {}));
  rate.gb_per_s = ours.gb_per_s;
  if (options_.fio) {
    const std::string report =
        (std::filesystem::temp_directory_path() / absl::StrCat("caravan-fio.", ::getpid()))
            .string();
    CARAVAN_ASSIGN_OR_RETURN(rate.fio_gb_per_s,
                             MeasureFioRate(file, load_, /*large_pages=*/true, report));
  }
  return rate;
}

int64_t DiskGauge::memory_bytes() const { return memory_.size() + (options_.fio ? kFioBytes : 0); }

}  // namespace caravan
