#ifndef CARAVAN_TESTS_CLUSTER_PLANNER_TESTING_H_
#define CARAVAN_TESTS_CLUSTER_PLANNER_TESTING_H_

// Models of a few bytes and workers for them, for tests of plans by memory.

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/planner.h"

namespace caravan {

/// Layers that are always active throughout.
inline ModelCost MakeCost(const std::vector<int64_t>& layer_bytes, int64_t kv_values_per_token = 0,
                          int64_t embedding_bytes = 0, int64_t head_bytes = 0) {
  ModelCost cost;
  cost.embedding.weight_bytes = embedding_bytes;
  cost.head.weight_bytes = head_bytes;
  for (const int64_t bytes : layer_bytes) {
    LayerCost layer;
    layer.weight_bytes = bytes;
    layer.kv_values_per_token = kv_values_per_token;
    cost.layers.push_back(layer);
  }
  return cost;
}

/// Whose KV caches take a byte a value.
inline std::vector<PlannerWorker> MakeWorkers(const std::vector<int64_t>& budgets) {
  std::vector<PlannerWorker> workers;
  for (size_t i = 0; i < budgets.size(); ++i) {
    workers.push_back({WorkerId{static_cast<uint32_t>(i + 1)}, absl::StrCat("box", i), budgets[i],
                       DType::kF8E4M3});
  }
  return workers;
}

/// A worker, and the end of its stage.
using StageEnd = std::pair<uint32_t, int>;

inline std::vector<StageEnd> SplitOf(const PipelinePlan& plan) {
  std::vector<StageEnd> split;
  for (const StagePlan& stage : plan.stages) {
    split.emplace_back(Number(stage.worker), stage.stage.end_layer);
  }
  return split;
}

/// Layers of 10 bytes and 8 experts of 10 bytes, of which a row chooses 2, packed in slots of 12.
inline ModelCost MakeMoeCost(int num_layers, int64_t kv_values_per_token = 0) {
  ModelCost cost = MakeCost(std::vector<int64_t>(num_layers, 90), kv_values_per_token);
  for (LayerCost& layer : cost.layers) {
    layer.expert_bytes = 80;
    layer.num_experts = 8;
    layer.expert_slot_bytes = 12;
    layer.experts_per_token = 2;
  }
  return cost;
}

inline std::vector<PlannerWorker> MakeOffloadingWorkers(const std::vector<int64_t>& budgets,
                                                        int64_t process_bytes = 0) {
  std::vector<PlannerWorker> workers = MakeWorkers(budgets);
  for (PlannerWorker& worker : workers) {
    worker.offloads = true;
    worker.process_bytes = process_bytes;
  }
  return workers;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_CLUSTER_PLANNER_TESTING_H_
