#ifndef CARAVAN_KERNELS_EXPERT_BATCHES_H_
#define CARAVAN_KERNELS_EXPERT_BATCHES_H_

// The weights that one call of Backend::RoutedExperts needs, as they come into memory.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/matrix.h"

namespace caravan {

/// One gated feed-forward network: down(silu(gate(x)) * up(x)).
struct FfnWeights {
  Matrix gate;  // [inter, hidden]
  Matrix up;    // [inter, hidden]
  Matrix down;  // [hidden, inter]
};

/// A routed expert whose weights are in memory.
struct LoadedExpert {
  int32_t id = 0;
  FfnWeights weights;
};

/// Rows times chosen experts up to which experts may come in any order. The kernel keeps the
/// product of each until its turn (R1: 28 KiB, so 56 MiB in all); with more rows an expert has so
/// much work that the disk keeps ahead, in order.
inline constexpr int64_t kMaxUnorderedShares = 2048;

/// Gives each expert that a call's rows chose once; others only as ResidentExperts says. Used by
/// one thread.
class ExpertBatches {
 public:
  virtual ~ExpertBatches() = default;

  /// Experts that were not given yet; waits until there is one. Empty: all were given. They stay in
  /// memory until the next call, or the object's end.
  /// Errors: the reader's, with the expert's name; then the object is of no more use.
  virtual absl::StatusOr<absl::Span<const LoadedExpert>> Next() = 0;

  /// Whether ids ascend, within batches and from batch to batch. They do past kMaxUnorderedShares.
  virtual bool ascending() const = 0;
};

/// Experts that are all in memory: one batch.
class ResidentExperts : public ExpertBatches {
 public:
  /// experts: all of the layer, by id; expert_ids: what the rows chose, in any order. Both are read
  /// here only. REQUIRES: 0 <= id < experts.size().
  ResidentExperts(absl::Span<const FfnWeights> experts, absl::Span<const int32_t> expert_ids);
  /// Gives these. REQUIRES: ids ascend.
  explicit ResidentExperts(std::vector<LoadedExpert> batch) : batch_(std::move(batch)) {}
  /// Gives all of the layer, by id: for a card's memory, where it is not known which were chosen.
  explicit ResidentExperts(absl::Span<const FfnWeights> experts);

  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override;
  bool ascending() const override { return true; }

 private:
  std::vector<LoadedExpert> batch_;  // ascending
  bool given_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_EXPERT_BATCHES_H_
