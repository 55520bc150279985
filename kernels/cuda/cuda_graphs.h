#ifndef CARAVAN_KERNELS_CUDA_CUDA_GRAPHS_H_
#define CARAVAN_KERNELS_CUDA_CUDA_GRAPHS_H_

// What a stream is given again and again, kept as CUDA graphs (CUDA C++ Programming Guide, "CUDA
// Graphs"): one call launches all of a graph's kernels, where one after another they take the host
// longer than short ones take the card.
//
// Used by the thread that uses the stream.

#include <array>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_stream.h"

// What CUDA calls cudaGraphExec_t points to one of these.
struct CUgraphExec_st;

namespace caravan {

/// Kernels of all graphs that are kept; the driver keeps their arguments in the card's memory
/// (kCudaGraphBytes, kernels/cuda/cuda_scratch.h).
inline constexpr int64_t kMaxGraphNodes = 16384;

class CudaGraphs {
 public:
  /// Names what is queued.
  using Key = std::array<int64_t, 4>;

  /// `stream` outlives the object.
  explicit CudaGraphs(const CudaStream& stream) : stream_(stream) {}
  ~CudaGraphs();
  CudaGraphs(const CudaGraphs&) = delete;
  CudaGraphs& operator=(const CudaGraphs&) = delete;

  /// Queues on the stream what `queue` does: the first time that a key comes by calling it, which
  /// also has CUDA load what it launches; the second time it is called once more, for a graph of
  /// it; from then on by that graph. The least lately used are given up for others. What the card
  /// has no memory left to keep is called each time.
  /// queue: returns whether the same is to be done when the key comes again; if not, it is called
  /// each time. REQUIRES: it waits for nothing, and copies nothing to or from the host.
  /// Errors: those of `queue`; Internal - CUDA's own.
  absl::Status Run(const Key& key, absl::FunctionRef<absl::StatusOr<bool>()> queue);

  /// Those kept.
  int64_t num_graphs() const { return num_graphs_; }

 private:
  /// What is known of a key.
  struct Known {
    bool repeats = true;
    CUgraphExec_st* graph = nullptr;
    int64_t num_nodes = 0;
    int64_t last_use = 0;
  };

  absl::Status Capture(Known& known, absl::FunctionRef<absl::StatusOr<bool>()> queue);
  absl::Status Launch(Known& known);
  /// Gives up what was used least lately, until there is room for so many more kernels.
  absl::Status MakeRoom(int64_t num_nodes);
  void Drop(Known& known);

  const CudaStream& stream_;
  absl::flat_hash_map<Key, Known> known_;
  int64_t num_graphs_ = 0;
  int64_t num_nodes_ = 0;  // of all graphs
  int64_t uses_ = 0;
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CUDA_CUDA_GRAPHS_H_
