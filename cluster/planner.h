#ifndef CARAVAN_CLUSTER_PLANNER_H_
#define CARAVAN_CLUSTER_PLANNER_H_

// Splits a model's layers over workers: a pure function of costs, budgets and, where they are
// known, times.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/dtype.h"
#include "cluster/box.h"
#include "cluster/pipeline_plan.h"
#include "cluster/plan_aim.h"
#include "cluster/worker_id.h"
#include "model/layer_cost.h"
#include "model/model_config.h"
#include "model/step_memory.h"

namespace caravan {

struct PlannerWorker {
  WorkerId id{};
  std::string name;                 // for messages
  int64_t memory_budget_bytes = 0;  // of weights and KV cache together
  DType kv_dtype = DType::kF32;     // of its KV cache
  bool offloads = false;            // it can leave routed experts on its disk
  int64_t process_bytes = 0;        // of the budget, what an offloading stage leaves to the process
  int64_t kv_disk_bytes = 0;        // for KV blocks that memory has no room for
  bool on_card = false;             // the budget is a card's memory, and all that a stage takes
  bool has_nccl = false;            // it passes activations from there by NCCL where it can
  // What its box can do: rates, and beside a card the memory for experts. nullopt: not known.
  std::optional<Box> box = std::nullopt;
};

struct PlannerOptions {
  uint64_t version = 1;
  // What every stage must be able to cache: one longest sequence. A cache that comes in blocks
  // needs this to be whole blocks.
  int64_t context_tokens = 0;
  // What it should cache where memory allows, for many sequences at once.
  int64_t kv_tokens = 0;
  StepMemory step_memory = {};       // left free by stages that offload
  StepMemory card_step_memory = {};  // left free by stages on cards
  // Where all workers' boxes are known, plans are made by times. Borrowed; null: by memory alone.
  const ModelConfig* config = nullptr;
  PlanAim aim = PlanAim::kBulk;  // of plans by times
  // Workers and stages of a plan by times that stays, unless another is better by a twentieth.
  std::vector<StagePlan> present = {};
  // That plan serves, and was made by times: so is the next, over the workers whose boxes are
  // known, as long as these hold the model. The others stay spare.
  bool present_by_time = false;
};

/// Every layer goes to one worker; stages are contiguous. The first also embeds, the last has the
/// head, and each fits its worker in one of two ways:
///
/// - resident: all of its weights and the KV cache of context_tokens; on a card the memory of steps
///   too. The rest of the budget goes to the KV cache, up to kv_tokens.
/// - offloading, where the worker and the cost can: its always-active weights, the same KV cache,
///   the process and the memory of steps, and as many slots as one row of a layer chooses experts.
///   So the budget is all that the process takes. Of the rest, half may go to the KV cache, up to
///   kv_tokens and not past what the stage that caches fewest tokens makes use of; slots get what
///   is left.
///
/// A stage whose KV cache then holds fewer than kv_tokens gets, of its worker's disk, what brings
/// it closest to them, or to what the stage that caches fewest tokens makes use of. One longest
/// sequence has room in memory in any case.
///
/// Where `cost` has multi-token prediction, the last stage drafts.
///
/// By times, where `options` has the config and all workers their boxes (with present_by_time:
/// over those that have): the workers, their order
/// and the split for which step_time foretells most, with what stages are given above.
/// For bulk: most tokens/s of as many longest sequences as kv_tokens are, or where caches have no
/// room for them, of a half, a quarter, ... of these; all of their context is looked back on. For
/// interactive: least time for a token of one that is alone. A stage offloads where that is faster,
/// and a worker that would make all slower stays spare. Exact up to a dozen workers that all differ
/// (equal ones count less, networks that differ more). More of them keep the order of `workers`:
/// exact but for that. Of more than 24 that differ, layers are shared out by memory. Two
/// things are counted as for the worst order: steps that wait, as if every worker had a stage, and
/// NCCL, as if each that has it had such a neighbour.
///
/// Else by memory, in the order of `workers`. Nothing offloads where a plan without that is found.
/// Chosen is the split whose largest share (a stage's weights, wherever they are / its worker's
/// budget) is least, so that a box with twice the memory takes twice the bytes; among those the one
/// whose squared shares have the least sum, so that what is not at that limit is even too; then the
/// one whose last stage begins first, and so on towards the first. Exact, by dynamic programming
/// (cluster/stage_split.h).
///
/// Every worker gets a layer while there are enough; else the last ones stay spare. Where no such
/// split fits, the worker with the smallest budget is left out (of equal ones the last), and so on:
/// greedy, so it finds a plan without the boxes that are too small to help, but not every plan that
/// leaves out a larger box.
///
/// Errors: FailedPrecondition - no workers, or the model does not fit them (says what is missing);
///         InvalidArgument - no layers, impossible tokens, or a budget <= 0.
absl::StatusOr<PipelinePlan> PlanStages(const ModelCost& cost,
                                        absl::Span<const PlannerWorker> workers,
                                        const PlannerOptions& options);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PLANNER_H_
