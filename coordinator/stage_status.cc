#include "coordinator/stage_status.h"

#include "cluster/kv_tiers.h"
#include "kernels/kv_rows.h"

namespace caravan {

void DescribeStageOf(const ModelCost& model, const StagePlan& plan, const StageState& state,
                     DType kv_dtype, v1::WorkerStatus& worker) {
  const LayerCost cost = model.Of(plan.stage);
  const bool offloads = plan.expert_bytes > 0;
  const int64_t in_memory =
      offloads ? cost.always_active_bytes() + plan.expert_bytes : plan.weight_bytes;
  worker.set_state(state.ready.has_value() ? v1::WORKER_STATE_READY : v1::WORKER_STATE_LOADING);
  *worker.mutable_stage() = ToProto(plan.stage);
  worker.set_stage_bytes(static_cast<uint64_t>(plan.weight_bytes));
  worker.set_load_bytes(state.load_bytes > 0 ? state.load_bytes : static_cast<uint64_t>(in_memory));
  worker.set_loaded_bytes(state.ready.has_value() ? static_cast<uint64_t>(in_memory)
                                                  : state.loaded_bytes);
  worker.set_experts(static_cast<uint32_t>(cost.num_experts));
  if (offloads) {
    worker.set_expert_slots(static_cast<uint32_t>(plan.expert_bytes / cost.expert_slot_bytes));
    worker.set_expert_bytes(static_cast<uint64_t>(plan.expert_bytes));
  }
  if (!state.ready.has_value()) return;
  worker.set_card_bytes(state.ready->card_bytes());
  worker.set_kv_blocks(state.ready->kv_blocks());
  worker.set_kv_block_tokens(state.ready->kv_block_tokens());
  const int num_layers = plan.stage.num_kv_layers();
  const KvBlockShape shape = {num_layers,
                              KvBytes(kv_dtype, int64_t{state.ready->kv_block_tokens()} *
                                                    cost.kv_values_per_token / num_layers)};
  const int64_t on_disk = state.ready->kv_blocks_on_disk();
  worker.set_kv_blocks_on_disk(state.ready->kv_blocks_on_disk());
  worker.set_kv_bytes(
      static_cast<uint64_t>((int64_t{state.ready->kv_blocks()} - on_disk) * shape.block_bytes() +
                            on_disk * shape.memory_of_disk_block()));
  worker.set_kv_disk_bytes(static_cast<uint64_t>(on_disk * shape.disk_block_bytes()));
}

}  // namespace caravan
