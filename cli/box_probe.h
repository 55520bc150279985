#ifndef CARAVAN_CLI_BOX_PROBE_H_
#define CARAVAN_CLI_BOX_PROBE_H_

// All of a box in brief, in the terms in which clusters are planned: caravan probe.

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cli/link_probe.h"
#include "cluster/box.h"
#include "kernels/cpu/cpu_backend.h"
#include "worker/compute_device.h"

namespace caravan {

struct BoxProbeOptions {
  CpuOptions cpu;
  // Where the model lies or will lie; a scratch file is written there for the time being.
  std::string disk_directory = ".";
  // On further drives, with copies of the same files (`caravan worker --mirror`). All are read at
  // once, so that two directories of one drive give what it has. The rate supposes that each has
  // all of the files; the box's room is that of disk_directory, whatever these have.
  std::vector<std::string> mirrors;
  int64_t scratch_bytes = int64_t{2}
                          << 30;  // larger than the disk's caches; the most where room is
  bool reads_files = false;  // in place of a scratch file the largest of the directory, where that
                             // is large enough
  int64_t memory_bytes = int64_t{1} << 30;     // the most that is read of memory
  const ComputeDevice* card = nullptr;         // null: none is measured
  std::string link_address;                    // as LinkProbeOptions; empty: no network is measured
  absl::Duration duration = absl::Seconds(1);  // of each measurement
  std::function<void(absl::string_view)> on_result;  // a line for people, as soon as it is there
  std::stop_token stop;
};

/// A box with what was measured of it, each figure's source said. On a machine that others use at
/// the time it is what they leave. Takes six durations, what a scratch file for each drive takes to
/// write, four durations more for a link and some seconds more for a card. Errors: as
/// MakeCpuBackend, ProbeMachine, MakeScratchFile and MeasureReadRate; of a card as
///         ComputeDevice; as ProbeLink; ResourceExhausted - too little memory; Cancelled - stopped.
absl::StatusOr<Box> ProbeBox(const BoxProbeOptions& options);

/// The box that the file at `path` tells of. Where there is no such file, it is measured in brief
/// (a few seconds, and some more for a card), and kept there for the next time. `options` says what
/// of, but for durations and sizes: of disks, the largest file in their directory is read, where
/// that is large enough. nullopt: it could not be measured; that, a mirror that cannot be read or
/// written, a file that tells of another number of drives, and one that cannot be written, are
/// warnings in the log. Errors: as ReadJsonFile and BoxFromJson.
absl::StatusOr<std::optional<Box>> KeptBox(const std::string& path, BoxProbeOptions options);

/// One figure a line.
std::string BoxTable(const Box& box);

}  // namespace caravan

#endif  // CARAVAN_CLI_BOX_PROBE_H_
