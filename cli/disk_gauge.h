#ifndef CARAVAN_CLI_DISK_GAUGE_H_
#define CARAVAN_CLI_DISK_GAUGE_H_

// What the disk gives when nothing else is asked of it, in the midst of a benchmark: the same
// files, the same sizes, the same queue as the experts'.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/buffer.h"
#include "base/io/direct_file.h"
#include "base/io/read_rate.h"
#include "model/stored_model.h"

namespace caravan {

/// Used by one thread at a time.
class DiskGauge {
 public:
  struct Options {
    bool fio = false;  // beside it
    absl::Duration duration = absl::Seconds(1);
  };
  struct Rate {
    double gb_per_s = 0;
    double fio_gb_per_s = 0;  // 0: not asked for
  };

  /// Errors: InvalidArgument - `model` is no packed one with routed experts; as DirectFile::Open
  /// and CheckFio; ResourceExhausted - no memory.
  static absl::StatusOr<std::unique_ptr<DiskGauge>> Create(const StoredModel& model,
                                                           const Options& options);

  /// Reads of whole experts at random places of one layer's file, each time the next one's.
  /// Errors: as MeasureReadRate and MeasureFioRate.
  absl::StatusOr<Rate> Measure();

  int64_t expert_bytes() const { return load_.read_bytes; }
  /// What it takes, that of fio's process included.
  int64_t memory_bytes() const;

 private:
  explicit DiskGauge(const Options& options) : options_(options) {}

  const Options options_;
  ReadLoad load_;
  Buffer memory_;
  std::vector<std::unique_ptr<DirectFile>> files_;
  size_t next_file_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_DISK_GAUGE_H_
