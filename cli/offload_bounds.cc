#include "cli/offload_bounds.h"

#include <algorithm>

#include "base/check.h"

namespace caravan {
namespace {

absl::Duration ReadTime(int64_t bytes, double bytes_per_s) {
  return absl::Seconds(static_cast<double>(bytes) / bytes_per_s);
}

/// What its steps touched beyond what the slots may have kept from the step before.
int64_t LeastReads(const StageRun& stage) {
  int64_t reads = 0;
  for (size_t step = 0; step < stage.visits.size(); step += static_cast<size_t>(stage.num_layers)) {
    int64_t touched = 0;
    for (int layer = 0; layer < stage.num_layers; ++layer) {
      touched += stage.visits[step + static_cast<size_t>(layer)].touched;
    }
    reads += std::max<int64_t>(0, touched - stage.slots);
  }
  return reads;
}

}  // namespace

OffloadBounds ComputeOffloadBounds(const OffloadRun& run, double bytes_per_s) {
  CARAVAN_CHECK(bytes_per_s > 0);
  const auto add = [&run](absl::Duration part, absl::Duration& all) {
    all = run.stages_overlap ? std::max(all, part) : all + part;
  };
  OffloadBounds bounds;
  int64_t read_bytes = 0;
  int64_t least_reads = 0;
  for (const StageRun& stage : run.stages) {
    CARAVAN_CHECK(stage.num_layers > 0
                      ? stage.visits.size() % static_cast<size_t>(stage.num_layers) == 0
                      : stage.visits.empty());
    absl::Duration compute = stage.busy;
    absl::Duration in_turn = stage.busy;
    for (const ExpertVisit& visit : stage.visits) {
      compute -= visit.waited;
      in_turn += std::max(ReadTime(visit.read_bytes, bytes_per_s), visit.compute) - visit.waited -
                 visit.compute;
      read_bytes += visit.read_bytes;
    }
    add(compute, bounds.compute);
    add(in_turn, bounds.in_turn);
    least_reads += LeastReads(stage);
  }
  // Stages that overlap share the disk.
  bounds.in_turn = std::max(bounds.in_turn, ReadTime(read_bytes, bytes_per_s));
  bounds.disk = ReadTime(least_reads * run.expert_bytes, bytes_per_s);
  return bounds;
}

}  // namespace caravan
