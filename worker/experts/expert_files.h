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

struct PackedExperts;  // model/pack/pack_manifest.h

/// Immutable, so thread-safe. An expert's run is its bytes, in a row and padded, as in its file. A
/// layer's file may have copies; those in one directory are of one disk.
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

  /// Directories. At least one.
  int num_disks() const { return static_cast<int>(disks_.size()); }
  /// Of the layer's file: at least one.
  int num_copies(int layer) const { return static_cast<int>(Of(layer).copies.size()); }
  /// In [0, num_disks()): where that copy lies. REQUIRES, here and below: it is one of the layer's.
  int DiskOf(int layer, int copy) const { return CopyOf(layer, copy).disk; }
  const std::string& PathOf(int layer, int copy) const { return CopyOf(layer, copy).file->path(); }

  /// The read of an expert's run to `run`.
  FileRead ReadOf(ExpertKey key, int copy, std::byte* run) const;
  /// The matrices of a run that was read.
  FfnWeights WeightsAt(ExpertKey key, const std::byte* run) const;
  /// Errors: DataLoss - the run is not what was packed; as Error.
  absl::Status CheckHash(ExpertKey key, int copy, const std::byte* run) const;
  /// DataLoss of an expert, with its name, its layer's and its file's.
  absl::Status Error(ExpertKey key, int copy, absl::string_view what) const;

 private:
  /// A matrix with its place in the run.
  struct Place {
    Matrix matrix;  // without pointers
    int64_t offset = 0;
    int64_t scale_offset = -1;  // -1: it has no scales

    Matrix At(const std::byte* run) const;
  };
  struct Copy {
    std::unique_ptr<DirectFile> file;
    int disk = 0;
  };
  struct Layer {
    std::vector<Copy> copies;
    int64_t offset = 0;  // of expert 0's run
    int64_t stride = 0;
    Place gate, up, down;
    std::vector<std::string> hashes;  // by expert
  };

  explicit ExpertFiles(int experts_per_layer) : experts_per_layer_(experts_per_layer) {}

  absl::StatusOr<Layer> OpenLayer(const ModelConfig& config, int layer, const TensorSource& source);
  absl::StatusOr<Copy> OpenCopy(const std::string& path, const PackedExperts& experts);
  const Layer& Of(int layer) const;
  const Copy& CopyOf(int layer, int copy) const {
    return Of(layer).copies[static_cast<size_t>(copy)];
  }

  const int experts_per_layer_;
  std::vector<int> layer_numbers_;
  std::vector<Layer> layers_;       // as layer_numbers_
  std::vector<std::string> disks_;  // directories
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_FILES_H_
