#ifndef CARAVAN_CLI_PIPELINE_BENCH_H_
#define CARAVAN_CLI_PIPELINE_BENCH_H_

// Measures pipelines of real processes on this machine together with what their boxes and links
// give, so that what is foretold of them can be held against it: caravan bench plan.
//
// A box is a part of this machine: the cores and the disk's rate that the program
// `box_command` gives it (bench/as_box.sh), and the memory that its worker is allowed. Parts share
// the machine's memory, so boxes are probed alone and while their neighbours are, and a run is told
// the figures of as many at once as its load keeps at work. Machines have moods: boxes are probed
// before and after each round of runs, which are told the medians.

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "cli/bench_cluster.h"
#include "cli/measured_pipelines.h"
#include "cli/shaped_link.h"
#include "cluster/box.h"
#include "model/stored_model.h"

namespace caravan {

/// Jobs that come one right after the other. Their lengths are about these, each another.
struct PipelineLoad {
  int jobs = 1;
  int prompt_tokens = 0;
  int reply_tokens = 0;
};

struct PipelineBenchOptions {
  std::string model;  // a packed one
  int threads = 1;    // of each box
  int64_t ram = 0;    // of all boxes together, shared out evenly; 0: all experts are in memory
  DType kv_dtype = DType::kF16;
  std::optional<LinkShape> link;  // between boxes; nullopt: loopback
  std::string box_command;        // as BenchCluster::Options
  std::string disk_directory;     // where the disk is probed
  double probe_seconds = 1;       // for each of about eight measurements
  std::string label;              // what runs are called
  std::vector<PipelineLoad> loads;
  int rounds = 1;  // whose medians count
  uint64_t seed = 1;
};

/// Used by one thread.
class PipelineBench {
 public:
  /// Both are borrowed.
  PipelineBench(const StoredModel& model, const PipelineBenchOptions& options)
      : model_(model), options_(options) {}

  /// A run for each load, by a cluster of so many workers. Says on stderr what it does.
  /// Errors: as BenchCluster::Start and Check; Internal - a probe says no box;
  ///         Unavailable - a reply did not come to its end.
  absl::StatusOr<std::vector<PipelineRun>> Measure(int workers);

 private:
  /// By how many were probed at once, and of each box what every probe said.
  using ProbedBoxes = std::map<int, std::vector<std::vector<Box>>>;
  struct LoadRun {
    PipelineRun run;
    std::vector<PipelineFigures> rounds;
  };

  absl::Status ProbeBoxes(int workers, ProbedBoxes& probed);
  absl::StatusOr<std::vector<Box>> ProbeAtOnce(int count);
  absl::StatusOr<Box::Network> ProbeNetwork(const std::string& address);
  /// One run of each load, in turn.
  absl::Status RunRound(BenchCluster& cluster, int round, std::mt19937_64& texts,
                        std::vector<LoadRun>& runs);
  int64_t ContextTokens() const;
  int64_t MostJobs() const;

  const StoredModel& model_;
  const PipelineBenchOptions& options_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_PIPELINE_BENCH_H_
