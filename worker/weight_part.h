#ifndef CARAVAN_WORKER_WEIGHT_PART_H_
#define CARAVAN_WORKER_WEIGHT_PART_H_

// A stage's weights in the parts that are read, kept and dropped at once: a stage of another plan
// takes over those that it has in common with the one before (Worker).

#include <compare>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/memory.h"
#include "model/model_config.h"
#include "model/stage_spec.h"
#include "model/tensor_source.h"
#include "model/tensor_table.h"

namespace caravan {

struct WeightPartId {
  enum class Kind {
    kEmbedding,
    kLayer,    // but for its routed experts: a stage may leave those on disk
    kExperts,  // the routed experts of such a layer
    kMtp,      // the layer of multi-token prediction, but for those
    kMtpExperts,
    kHead,       // the final norm and the projection
    kFinalNorm,  // the same where the projection is the embedding, which is a part of its own
  };

  Kind kind = Kind::kLayer;
  int layer = 0;  // of kLayer and kExperts

  auto operator<=>(const WeightPartId&) const = default;
};

/// Immutable once loaded, so thread-safe.
class WeightPart {
 public:
  /// A zero Matrix when the part has no such tensor.
  Matrix MatrixOf(const std::string& name) const;
  /// Null when it has no such tensor.
  const float* VectorOf(const std::string& name) const;

  /// What CheckTensors says of its tensors.
  int64_t num_bytes() const { return array_.bytes(); }

  /// One tensor's place in the part's memory.
  struct Placed {
    TensorSpec spec;
    TensorInfo stored;          // in the source
    TensorInfo loaded;          // in memory
    int64_t offset = 0;         // of the weights
    int64_t scale_offset = -1;  // of the FP8 scales; -1: none
    int64_t scale_bytes = 0;
  };
  WeightPart(std::vector<Placed> placed, Array array);
  /// In the order in which they lie there.
  const std::vector<Placed>& placed() const { return placed_; }
  /// For whoever fills it.
  std::byte* data() const { return array_.data(); }

 private:
  const std::vector<Placed> placed_;
  const Array array_;
  absl::flat_hash_map<std::string, const Placed*> by_name_;
};

using WeightParts = std::map<WeightPartId, std::shared_ptr<const WeightPart>>;

/// The parts of a stage, in the order of a pack's files. `experts`: with its routed experts.
std::vector<WeightPartId> PartsOf(const ModelConfig& config, const StageSpec& stage, bool experts);

/// Called now and then while loading; false stops it.
using LoadProgress = std::function<bool(int64_t loaded_bytes, int64_t total_bytes)>;

/// Reads to `memory` those of `ids` that `held`, which lies there too, lacks, the first ones that
/// have room in `max_bytes` together, and adds them to it. The source has their tensors
/// (CheckTensors). Errors: DataLoss, Unavailable - from `source`, with the tensor's name; Cancelled
/// - `progress`
///         said so; as Memory::Allocate and CopyIn. What was read whole by then is added all the
///         same in the host's memory, and nothing in a card's.
absl::Status LoadWeightParts(const ModelConfig& config, const std::vector<WeightPartId>& ids,
                             const TensorSource& source, WeightParts& held, Memory& memory,
                             const LoadProgress& progress,
                             int64_t max_bytes = std::numeric_limits<int64_t>::max());

}  // namespace caravan

#endif  // CARAVAN_WORKER_WEIGHT_PART_H_
