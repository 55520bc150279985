#include "kernels/cuda/cuda_graphs.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>

#include "kernels/cuda/cuda_error.h"

namespace caravan {
namespace {

// Shapes that come once are forgotten all together at so many.
constexpr size_t kMaxKnown = 4096;

struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using OwnedGraph = std::unique_ptr<CUgraph_st, GraphDeleter>;

}  // namespace

CudaGraphs::~CudaGraphs() {
  // One may be under way; an error was one before, and whoever waited has seen it.
  cudaStreamSynchronize(stream_.get());
  for (auto& [key, known] : known_) Drop(known);
}

absl::Status CudaGraphs::Run(const Key& key, absl::FunctionRef<absl::StatusOr<bool>()> queue) {
  if (const auto found = known_.find(key); found != known_.end()) {
    Known& known = found->second;
    if (!known.repeats) return queue().status();
    if (known.graph == nullptr) {
      const absl::Status captured = Capture(known, queue);
      if (absl::IsResourceExhausted(captured)) {
        // The card has no memory left for it; nothing has run yet.
        known.repeats = false;
        return queue().status();
      }
      CARAVAN_RETURN_IF_ERROR(captured);
    }
    return Launch(known);
  }
  CARAVAN_ASSIGN_OR_RETURN(const bool repeats, queue());
  if (known_.size() >= kMaxKnown) {
    absl::erase_if(known_, [](const auto& entry) { return entry.second.graph == nullptr; });
  }
  known_[key].repeats = repeats;
  return absl::OkStatus();
}

absl::Status CudaGraphs::Capture(Known& known, absl::FunctionRef<absl::StatusOr<bool>()> queue) {
  // Other threads may do with the device what they like meanwhile.
  CARAVAN_CUDA_RETURN_IF_ERROR(
      cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  const absl::Status queued = queue().status();
  cudaGraph_t captured = nullptr;
  const absl::Status ended =
      CudaStatus(cudaStreamEndCapture(stream_.get(), &captured), "cudaStreamEndCapture");
  const OwnedGraph graph(captured);
  CARAVAN_RETURN_IF_ERROR(queued);
  CARAVAN_RETURN_IF_ERROR(ended);
  size_t num_nodes = 0;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaGraphGetNodes(graph.get(), nullptr, &num_nodes));
  CARAVAN_RETURN_IF_ERROR(MakeRoom(static_cast<int64_t>(num_nodes)));
  cudaGraphExec_t executable = nullptr;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaGraphInstantiate(&executable, graph.get(), 0));
  known.graph = executable;
  known.num_nodes = static_cast<int64_t>(num_nodes);
  num_nodes_ += known.num_nodes;
  ++num_graphs_;
  return absl::OkStatus();
}

absl::Status CudaGraphs::Launch(Known& known) {
  known.last_use = ++uses_;
  CARAVAN_CUDA_RETURN_IF_ERROR(cudaGraphLaunch(known.graph, stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaGraphs::MakeRoom(int64_t num_nodes) {
  while (num_graphs_ > 0 && num_nodes_ + num_nodes > kMaxGraphNodes) {
    Known* oldest = nullptr;
    for (auto& [key, known] : known_) {
      if (known.graph == nullptr) continue;
      if (oldest == nullptr || known.last_use < oldest->last_use) oldest = &known;
    }
    // It may be under way.
    CARAVAN_RETURN_IF_ERROR(stream_.Synchronize());
    Drop(*oldest);
  }
  return absl::OkStatus();
}

void CudaGraphs::Drop(Known& known) {
  if (known.graph == nullptr) return;
  cudaGraphExecDestroy(known.graph);
  known.graph = nullptr;
  num_nodes_ -= known.num_nodes;
  --num_graphs_;
}

}  // namespace caravan
