#include "cluster/stage_needs.h"

#include <algorithm>

#include "base/int_math.h"
#include "cluster/kv_tiers.h"
#include "kernels/kv_rows.h"

namespace caravan {
namespace {

/// Of what an offloading stage's worker has beyond the stage's least, the part that may go to the
/// KV cache as far as kv_tokens ask for it: a half. Slots make a lone stream faster, since each
/// expert that is in memory need not be read; KV cache makes many streams faster, since more of
/// them share each read. Neither is known to matter less, and the default kv_tokens of eight
/// longest sequences would leave nothing to slots. Who wants more slots asks for fewer kv_tokens.
constexpr int64_t kKvShareDivisor = 2;

KvBlockShape KvShape(const StageSpec& stage, const LayerCost& cost, DType dtype) {
  const int num_layers = stage.num_kv_layers();
  return {num_layers, kKvBlockTokens * KvBytes(dtype, cost.kv_values_per_token / num_layers)};
}

/// Gives the stage as little of the worker's disk as brings its KV cache to `tokens`, or as close
/// as it can be.
void TakeKvDisk(const StageSpec& stage, const LayerCost& cost, const PlannerWorker& worker,
                int64_t tokens, StageRoom& room) {
  room.kv_tokens = KvTokens(cost, worker.kv_dtype, room.kv_bytes);
  room.kv_disk_bytes = 0;
  if (room.kv_tokens >= tokens || worker.kv_disk_bytes == 0) return;
  const KvBlockShape shape = KvShape(stage, cost, worker.kv_dtype);
  room.kv_disk_bytes =
      KvDiskFor(shape, room.kv_bytes, worker.kv_disk_bytes, CeilDiv(tokens, kKvBlockTokens));
  if (room.kv_disk_bytes == 0) return;
  room.kv_tokens =
      SplitKvBlocks(shape, room.kv_bytes, room.kv_disk_bytes).blocks() * kKvBlockTokens;
}

}  // namespace

PossibleStages::PossibleStages(const ModelCost& cost)
    : num_layers_(static_cast<int>(cost.layers.size())), drafts_(cost.mtp.has_value()) {
  for (int begin = 0; begin < num_layers_; ++begin) {
    LayerCost layers;
    for (int end = begin + 1; end <= num_layers_; ++end) {
      layers += cost.layers[static_cast<size_t>(end - 1)];
      LayerCost sum = layers;
      // What no layer has: Of(no layers) is that alone.
      StageSpec ends = Spec(begin, end);
      ends.end_layer = ends.first_layer;
      sum += cost.Of(ends);
      costs_.push_back(sum);
    }
  }
}

int64_t KvCacheBytes(const LayerCost& stage, DType dtype, int64_t tokens) {
  return tokens * KvBytes(dtype, stage.kv_values_per_token);
}

int64_t KvTokens(const LayerCost& stage, DType dtype, int64_t bytes) {
  const int64_t token_bytes = KvBytes(dtype, stage.kv_values_per_token);
  return token_bytes == 0 ? kMaxTokens : bytes / token_bytes;
}

StageNeeds::StageNeeds(const PossibleStages& stages, const PlannerOptions& options,
                       absl::Span<const PlannerWorker* const> workers, bool may_offload,
                       Order order)
    : stages_(stages), options_(options), workers_(workers), may_offload_(may_offload) {
  const auto with_nccl =
      std::count_if(workers.begin(), workers.end(), [](const auto* w) { return w->has_nccl; });
  for (size_t w = 0; w < workers.size(); ++w) {
    const bool joins = order == Order::kAny
                           ? with_nccl > 1
                           : (w > 0 && workers[w - 1]->has_nccl) ||
                                 (w + 1 < workers.size() && workers[w + 1]->has_nccl);
    hops_by_nccl_.push_back(workers[w]->has_nccl && joins);
  }
}

int64_t StageNeeds::StepBytes(int w, int begin, int end) const {
  const StepMemory& steps = worker(w).on_card ? options_.card_step_memory : options_.step_memory;
  return steps.Of(stages_.Spec(begin, end), num_workers()) +
         (hops_by_nccl_[static_cast<size_t>(w)] ? kNcclProcessBytes : 0);
}

StageNeed StageNeeds::Resident(int w, int begin, int end) const {
  const LayerCost& cost = stages_.Of(begin, end);
  StageNeed need;
  need.weights = cost.weight_bytes;
  need.kv = KvCacheBytes(cost, worker(w).kv_dtype, options_.context_tokens);
  if (worker(w).on_card) need.beside = StepBytes(w, begin, end);
  return need;
}

StageNeed StageNeeds::Of(int w, int begin, int end) const {
  const StageNeed resident = Resident(w, begin, end);
  const LayerCost& cost = stages_.Of(begin, end);
  if (!may_offload_ || !worker(w).offloads || !cost.can_offload() ||
      resident.total() <= worker(w).memory_budget_bytes) {
    return resident;
  }
  StageNeed need;
  need.offloads = true;
  need.weights = cost.always_active_bytes();
  need.kv = resident.kv;
  need.slots = cost.least_expert_slots() * cost.expert_slot_bytes;
  need.beside = worker(w).process_bytes + StepBytes(w, begin, end);
  return need.total() < resident.total() ? need : resident;
}

StageRoom StageNeeds::RoomFor(int w, int begin, int end, int64_t most_tokens) const {
  const LayerCost& cost = stages_.Of(begin, end);
  const PlannerWorker& worker = this->worker(w);
  const StageNeed need = Of(w, begin, end);
  const int64_t spare = worker.memory_budget_bytes - need.total();
  const int64_t wanted_tokens = std::max(options_.context_tokens, options_.kv_tokens);
  // The stage that caches fewest tokens decides for all: beyond that, slots are worth more.
  const int64_t useful_tokens =
      need.offloads ? std::min(wanted_tokens, most_tokens) : wanted_tokens;
  StageRoom room;
  room.kv_bytes = std::min(need.kv + (need.offloads ? spare / kKvShareDivisor : spare),
                           KvCacheBytes(cost, worker.kv_dtype, useful_tokens));
  TakeKvDisk(stages_.Spec(begin, end), cost, worker, std::min(wanted_tokens, most_tokens), room);
  if (need.offloads) {
    const int64_t left = worker.memory_budget_bytes - need.weights - need.beside - room.kv_bytes;
    room.expert_slots = left / cost.expert_slot_bytes;
  }
  return room;
}

}  // namespace caravan
