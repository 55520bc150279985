#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_FILES_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_FILES_H_

// Where the routed experts of a stage lie on disk, and what the bytes of one are.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/io/direct_file.h"
#include "base/io/read_queue.h"
#include "kernels/expert_batches.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "worker/experts/expert_key.h"

namespace caravan {

/// Immutable, so thread-safe. An expert's run is its bytes, in a row and padded, as in its file.
class ExpertFiles {
 public:
  /// The stage's layers that have experts, ascending; that of multi-token prediction is the last,
  /// where the stage drafts.
  static std::vector<int> LayersOf(const ModelConfig& config, const StageSpec& stage);

  /// Opens the files of those layers. `source` is not used afterwards.
  /// REQUIRES: there are any.
  /// Errors: FailedPrecondition - `source` is no packed model on this machine's disk;
  ///         InvalidArgument - its runs are not those of the config's experts; DataLoss - a file is
  ///         shorter than its runs; as DirectFile::Open.
  static absl::StatusOr<std::unique_ptr<ExpertFiles>> Open(const ModelConfig& config,
                                                           const StageSpec& stage,
                                                           const TensorSource& source);

  /// As LayersOf.
  const std::vector<int>& layers() const { return layer_numbers_; }
  /// After `layer`, or the first after the last.
  int NextLayer(int layer) const;
  int experts_per_layer() const { return experts_per_layer_; }
  int64_t num_experts() const;

  /// A multiple of kDirectAlignment.
  int64_t run_bytes(int layer) const { return Of(layer).stride; }
  /// Of the layer where that is most.
  int64_t max_run_bytes() const;

  /// The read of an expert's run to `run`.
  FileRead ReadOf(ExpertKey key, std::byte* run) const;
  /// The matrices of a run that was read.
  FfnWeights WeightsAt(ExpertKey key, const std::byte* run) const;
  /// Errors: DataLoss - the run is not what was packed; as Error.
  absl::Status CheckHash(ExpertKey key, const std::byte* run) const;
  /// DataLoss of an expert, with its name, its layer's and its file's.
  absl::Status Error(ExpertKey key, absl::string_view what) const;

 private:
  /// A matrix with its place in the run.
  struct Place {
    Matrix matrix;  // without pointers
    int64_t offset = 0;
    int64_t scale_offset = -1;  // -1: it has no scales

    Matrix At(const std::byte* run) const;
  };
  struct Layer {
    std::unique_ptr<DirectFile> file;
    int64_t offset = 0;  // of expert 0's run
    int64_t stride = 0;
    Place gate, up, down;
    std::vector<std::string> hashes;  // by expert
  };

  explicit ExpertFiles(int experts_per_layer) : experts_per_layer_(experts_per_layer) {}

  static absl::StatusOr<Layer> OpenLayer(const ModelConfig& config, int layer,
                                         const TensorSource& source);
  const Layer& Of(int layer) const;

  const int experts_per_layer_;
  std::vector<int> layer_numbers_;
  std::vector<Layer> layers_;  // as layer_numbers_
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_FILES_H_
