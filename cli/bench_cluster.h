#ifndef CARAVAN_CLI_BENCH_CLUSTER_H_
#define CARAVAN_CLI_BENCH_CLUSTER_H_

// A cluster on this machine to measure: a coordinator and its workers, each a process of its own on
// loopback, of the binary that runs.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "base/subprocess.h"
#include "caravan/v1/cluster.pb.h"
#include "cli/shaped_link.h"
#include "kernels/cpu/row_ops.h"
#include "model/stored_model.h"

namespace caravan {

/// How long a large model may take to load.
inline constexpr absl::Duration kBenchLoadTimeout = absl::Minutes(30);

/// What can be wrong with clusters of so many workers before they start.
/// Errors: InvalidArgument - as LocalPipeline::CheckOptions; `model` is a pack of some layers
/// alone.
absl::Status CheckBenchWorkers(const StoredModel& model, absl::Span<const int> workers,
                               DType kv_dtype);

/// A model without a tokenizer gets a stand-in. Serves from Start until it is destroyed. Used by
/// one thread.
class BenchCluster {
 public:
  struct Options {
    std::string model;
    int workers = 1;
    int threads = 1;  // of each worker
    DType kv_dtype = DType::kF32;
    CpuIsa isa = CpuIsa::kAuto;
    bool pin = false;  // worker i runs on core i (modulo the cores) alone
    std::vector<std::string> coordinator_arguments;
    std::vector<std::string> worker_arguments;
    // A program that runs as one of several boxes what follows its first argument, which is the
    // box's number: worker i is that of box i, the coordinator "coordinator". Empty: none.
    std::string box_command;
    // Of each box but the first, beside which the coordinator is; nullopt: loopback.
    std::optional<LinkShape> link;
  };

  /// Returns when all workers have been started, not when they serve. They join in order: worker i
  /// gets stage i, and is called "box-i".
  /// Errors: InvalidArgument - the coordinator does not start (says why); DeadlineExceeded - it
  ///         does not listen; as OpenStoredModel and MakeStandInTokenizer; Internal - no directory
  ///         for its files, or a worker cannot be pinned.
  static absl::StatusOr<std::unique_ptr<BenchCluster>> Start(const Options& options);
  ~BenchCluster();
  /// To be called now and then while it does not serve.
  /// Errors: Unavailable - one of its processes has ended; FailedPrecondition - all workers are
  ///         there, but for some seconds the model has been on none. Each says why.
  absl::Status Check();
  /// Errors: Unavailable - the coordinator does not answer.
  absl::StatusOr<v1::GetStatusResponse> Status() const;

  BenchCluster(const BenchCluster&) = delete;
  BenchCluster& operator=(const BenchCluster&) = delete;

  /// HOST:PORT.
  const std::string& address() const { return address_; }
  const std::string& http_address() const { return http_address_; }

 private:
  BenchCluster() = default;

  absl::Status Launch(const Options& options);
  absl::Status LaunchWorker(const Options& options, int index);
  /// Until so many workers have joined.
  absl::Status WaitForWorkers(int count);
  /// Writes the stand-in where it is needed; returns the coordinator's options.
  absl::StatusOr<std::vector<std::string>> TokenizerArguments(const std::string& model) const;
  absl::Status Spawn(const Options& options, const std::string& box,
                     std::vector<std::string> command);
  /// The last line that process `i` wrote on standard error.
  std::string LastWords(size_t i) const;
  std::string ErrorsPath(size_t i) const;
  absl::StatusOr<std::string> WaitForAddress(const std::string& address_file);

  std::string directory_;                           // of its own, removed at the end
  std::vector<std::unique_ptr<ShapedLink>> links_;  // outlive the processes
  std::vector<Subprocess> processes_;               // the coordinator first
  int num_workers_ = 0;
  absl::Duration without_plan_since_ = absl::InfiniteDuration();
  std::string address_;
  std::string http_address_;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_BENCH_CLUSTER_H_
