#include "cluster/step_time.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "cluster/expert_slots.h"
#include "cluster/pipeline_plan.h"
#include "cluster/stage_needs.h"
#include "model/stage_spec.h"
#include "model/step_memory.h"

namespace caravan {
namespace {

/// What one device does in a part of a step.
struct Work {
  double bytes = 0;
  double multiply_adds = 0;            // by weights
  double attention_multiply_adds = 0;  // by the KV cache

  Work Part(double share) const {
    return {bytes * share, multiply_adds * share, attention_multiply_adds * share};
  }
};

/// A second.
struct Device {
  double bytes = 0;
  double multiply_adds = 0;
  double attention_multiply_adds = 0;
};

Device CpuOf(const Box& box) {
  return {box.memory.read_bytes, box.cpu.multiply_adds, box.cpu.attention_multiply_adds};
}
Device CardOf(const Box& box) {
  return {box.card.read_bytes, box.card.multiply_adds, box.card.multiply_adds};
}

// Of a layer on a card, however few rows: launches, and kernels that are too short to read at the
// card's rate (docs/performance.md, "A stage on a card": 0.36 ms where bytes take 0.15).
constexpr double kCardLayerSeconds = 0.2e-3;
// Of a layer's experts that card and CPU share: what a visit takes besides, and each of its rows
// (measured there).
constexpr double kSharedVisitSeconds = 0.2e-3;
constexpr double kSharedRowSeconds = 2e-6;

/// Seconds of both.
struct Computing {
  double memory = 0;
  double arithmetic = 0;

  double seconds() const { return memory + arithmetic; }
};

/// Nothing takes no time, on a device that is not there too.
Computing TimeOf(const Work& work, const Device& device) {
  const auto over = [](double amount, double rate) { return amount == 0 ? 0 : amount / rate; };
  return {over(work.bytes, device.bytes),
          over(work.multiply_adds, device.multiply_adds) +
              over(work.attention_multiply_adds, device.attention_multiply_adds)};
}

/// Where a stage lies in a box.
struct Placement {
  int64_t expert_bytes = 0;   // of each
  int64_t expert_slots = 0;   // in VRAM and memory
  int64_t card_slots = 0;     // of these, in VRAM
  double always_on_card = 0;  // share of what is always active, and of the KV cache
  StageTiers tiers;
};

int64_t ExpertBytes(const LayerCost& stage) {
  return stage.num_experts > 0 ? stage.expert_bytes / stage.num_experts : 0;
}

int64_t KvCacheBytes(const LayerCost& stage, const DecodeLoad& load) {
  return KvCacheBytes(stage, load.kv_dtype, load.jobs * load.context_tokens);
}

/// Errors: as PredictStage.
absl::StatusOr<Placement> Place(const LayerCost& stage, const Box& box, const DecodeLoad& load) {
  const int64_t kv_bytes = KvCacheBytes(stage, load);
  const int64_t fixed = stage.always_active_bytes() + kv_bytes;
  const int64_t vram = box.card.all_bytes();
  if (const StageLack lack = LackOf(stage, box, load); lack.memory_bytes > 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        FormatByteSize(stage.always_active_bytes()), " of weights that are always active, ",
        FormatByteSize(kv_bytes), " of KV cache and the experts of one row lack ",
        FormatByteSize(lack.memory_bytes), " of memory on a box \"", box.name, "\""));
  } else if (lack.disk_bytes > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(FormatByteSize(stage.weight_bytes), " of weights lack ",
                     FormatByteSize(lack.disk_bytes), " of disk on a box \"", box.name, "\""));
  }
  Placement placed;
  placed.expert_bytes = ExpertBytes(stage);
  placed.tiers.card_fixed_bytes = std::min(vram, fixed);
  placed.tiers.memory_fixed_bytes = fixed - placed.tiers.card_fixed_bytes;
  placed.tiers.disk_bytes = stage.weight_bytes;
  if (fixed > 0) {
    placed.always_on_card =
        static_cast<double>(placed.tiers.card_fixed_bytes) / static_cast<double>(fixed);
  }
  if (placed.expert_bytes > 0) {
    const int64_t room = vram + box.memory.bytes - fixed;
    placed.expert_slots = std::min(stage.num_experts, room / placed.expert_bytes);
    placed.card_slots =
        std::min(placed.expert_slots, (vram - placed.tiers.card_fixed_bytes) / placed.expert_bytes);
    placed.tiers.card_expert_bytes = placed.card_slots * placed.expert_bytes;
    placed.tiers.memory_expert_bytes =
        (placed.expert_slots - placed.card_slots) * placed.expert_bytes;
  }
  return placed;
}

/// Of experts that are not on the card, of which a part is copied there, so that CPU and card,
/// which first computes those that are there, are done at the same time.
Computing ShareExperts(const Work& on_card, const Work& others, const Box& box) {
  const Computing cpu = TimeOf(others, CpuOf(box));
  const Computing card = TimeOf(on_card, CardOf(box));
  const auto slower = [](const Computing& a, const Computing& b) {
    return a.seconds() >= b.seconds() ? a : b;
  };
  if (box.card.count == 0 || box.card.pcie_bytes == 0 || others.bytes == 0 || cpu.seconds() == 0) {
    return slower(cpu, card);
  }
  const double copying = others.bytes / box.card.pcie_bytes;
  const Computing copied = TimeOf(others, CardOf(box));
  // The part that the CPU takes: it is done when the copies are, or when the card is, whichever is
  // later.
  const double part = std::min(
      1.0, std::max(copying / (cpu.seconds() + copying),
                    (card.seconds() + copied.seconds()) / (cpu.seconds() + copied.seconds())));
  const Work rest = others.Part(1 - part);
  Computing by_cpu = TimeOf(others.Part(part), CpuOf(box));
  // Copies read memory too.
  by_cpu.memory = others.bytes / box.memory.read_bytes;
  Computing by_card = TimeOf(
      {on_card.bytes + rest.bytes, on_card.multiply_adds + rest.multiply_adds, 0}, CardOf(box));
  if (const double copies = (1 - part) * copying; copies > by_card.seconds()) {
    by_card = {copies, 0};
  }
  return slower(by_cpu, by_card);
}

/// A row's multiply-adds by the experts that it chooses, of all layers.
double ChosenMultiplyAdds(const ModelConfig& config, double expert_layers, double chosen) {
  const double expert_weights =
      3.0 * static_cast<double>(config.hidden_size * config.moe_intermediate_size);
  return expert_layers * chosen * expert_weights;
}

/// Scores and sums of one row over its context, in the latent space (kernels/backend.h).
double AttentionMultiplyAdds(const MlaShape& mla, double layers, double context_tokens) {
  return layers * static_cast<double>(mla.num_heads) * context_tokens *
         static_cast<double>(mla.kv_width() + mla.kv_lora_rank);
}

/// What brings a row's queries into the latent space and its sums out of it: kv_b_proj, in floats
/// as all of attention is.
double LatentMultiplyAdds(const MlaShape& mla, double layers) {
  return layers * static_cast<double>(mla.num_heads * mla.kv_lora_rank *
                                      (mla.qk_nope_head_dim + mla.v_head_dim));
}

/// What is written and read of a row's activations beside matrices and attention: the norms' and
/// the residual's, queries and values between projections, and of each feed-forward network its
/// input, both projections of it and its output.
double ActivationBytes(const ModelConfig& config, const MlaShape& mla, double layers,
                       double expert_layers, double chosen) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto queries_and_values =
      static_cast<double>(mla.num_heads * (mla.q_head_dim() + mla.v_head_dim));
  const auto network = [&](double inter) { return 3 * hidden + 4 * inter; };
  const double experts = chosen + static_cast<double>(config.n_shared_experts);
  const double floats =
      layers * (8 * hidden + 2 * queries_and_values) +
      expert_layers * experts * network(static_cast<double>(config.moe_intermediate_size)) +
      std::max(0.0, layers - expert_layers) *
          network(static_cast<double>(config.intermediate_size));
  return floats * sizeof(float);
}

}  // namespace

double TouchedExperts(double num_experts, double chosen, double rows) {
  if (num_experts == 0) return 0;
  return num_experts * (1 - std::pow(1 - chosen / num_experts, rows));
}

double HitRate(double share, double touched_share, Routing routing) {
  constexpr std::pair<double, double> kMeasured[] = {{0, 0},       {0.03, 0.24}, {0.10, 0.44},
                                                     {0.25, 0.67}, {0.50, 0.81}, {1, 1}};
  share = std::clamp(share, 0.0, 1.0);
  if (routing == Routing::kEven) return share;
  const auto* const above = std::find_if(std::begin(kMeasured) + 1, std::end(kMeasured) - 1,
                                         [&](const auto& point) { return share <= point.first; });
  const auto* const below = above - 1;
  const double part = (share - below->first) / (above->first - below->first);
  const double one_row = below->second + part * (above->second - below->second);
  return share + (one_row - share) * std::pow(1 - touched_share, 1.5);
}

const char* BottleneckName(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::kDisk:
      return "disk";
    case Bottleneck::kMemory:
      return "memory";
    case Bottleneck::kArithmetic:
      return "arithmetic";
    case Bottleneck::kNetwork:
      return "network";
  }
  return "";
}

StageLack LackOf(const LayerCost& stage, const Box& box, const DecodeLoad& load) {
  const int64_t needed = stage.always_active_bytes() + KvCacheBytes(stage, load) +
                         stage.least_expert_slots() * ExpertBytes(stage);
  StageLack lack;
  lack.memory_bytes = std::max<int64_t>(0, needed - box.card.all_bytes() - box.memory.bytes);
  lack.disk_bytes = std::max<int64_t>(0, stage.weight_bytes - box.disk.bytes);
  return lack;
}

absl::StatusOr<StageTime> PredictStage(const ModelConfig& config, const LayerCost& stage,
                                       const Box& box, const DecodeLoad& load, double rows) {
  CARAVAN_ASSIGN_OR_RETURN(const Placement placed, Place(stage, box, load));
  const double per_layer = static_cast<double>(config.n_routed_experts);
  const double chosen = static_cast<double>(stage.experts_per_token);
  const double num_experts = static_cast<double>(stage.num_experts);
  const double expert_layers = num_experts == 0 ? 0 : num_experts / per_layer;
  const double expert_bytes = static_cast<double>(placed.expert_bytes);

  StageTime time;
  time.tiers = placed.tiers;
  time.expert_slots = placed.expert_slots;
  const auto kept_by = [&](int64_t slots) {
    const int64_t kept = slots - PassedExpertSlots(slots, stage.num_experts);
    return num_experts == 0 ? 1 : static_cast<double>(kept) / num_experts;
  };
  time.expert_share = kept_by(placed.expert_slots);

  // What is read.
  const double touched = TouchedExperts(per_layer, chosen, rows);
  const bool is_scan = 2 * touched > per_layer;
  // Between two tokens of a job the cache meets those of all others, or of a whole chunk.
  const double met =
      TouchedExperts(per_layer, chosen, std::max(rows, static_cast<double>(load.decoding_jobs())));
  const auto hit_by = [&](int64_t slots) {
    return per_layer == 0 ? 1 : HitRate(kept_by(slots), met / per_layer, load.routing);
  };
  time.bytes_read = expert_layers * touched * (1 - hit_by(placed.expert_slots)) * expert_bytes;
  time.read_seconds = time.bytes_read == 0 ? 0 : time.bytes_read / box.disk.read_bytes;

  // What every row passes, the part on the card after the other.
  const double chosen_multiply_adds = ChosenMultiplyAdds(config, expert_layers, chosen);
  const MlaShape mla = config.Mla();
  const double layers =
      static_cast<double>(stage.kv_values_per_token) / static_cast<double>(mla.kv_width());
  Work always;
  always.bytes =
      static_cast<double>(stage.active_bytes_per_token) - expert_layers * chosen * expert_bytes +
      rows * (static_cast<double>(KvCacheBytes(stage, load.kv_dtype, load.attended_tokens())) +
              ActivationBytes(config, mla, layers, expert_layers, chosen));
  const double latent = LatentMultiplyAdds(mla, layers);
  const double sampled = static_cast<double>(stage.sampled_flops_per_token) / 2;
  always.multiply_adds =
      rows * (static_cast<double>(stage.flops_per_token) / 2 - chosen_multiply_adds - latent -
              (1 - load.sampled_share) * sampled);
  always.attention_multiply_adds =
      rows *
      (latent + AttentionMultiplyAdds(mla, layers, static_cast<double>(load.attended_tokens())));
  const Computing on_cpu = TimeOf(always.Part(1 - placed.always_on_card), CpuOf(box));
  const Computing on_card = TimeOf(always.Part(placed.always_on_card), CardOf(box));
  time.always_seconds =
      on_cpu.seconds() + on_card.seconds() + placed.always_on_card * layers * kCardLayerSeconds;

  // The experts: those on the card beside the others. The card keeps the hottest, whatever lies
  // below it: more memory leaves it as many uses as it had.
  const Work experts = {expert_layers * touched * expert_bytes, rows * chosen_multiply_adds, 0};
  const double card_share = hit_by(placed.card_slots);
  const Computing shared =
      ShareExperts(experts.Part(card_share), experts.Part(1 - card_share), box);
  time.expert_seconds = shared.seconds();
  if (box.card.count > 0 && placed.card_slots < stage.num_experts) {
    time.expert_seconds += expert_layers * (kSharedVisitSeconds + rows * kSharedRowSeconds);
  }

  time.seconds = is_scan ? std::max(time.read_seconds, time.always_seconds + time.expert_seconds)
                         : time.always_seconds + std::max(time.read_seconds, time.expert_seconds);
  const double memory = on_cpu.memory + on_card.memory + shared.memory;
  const double arithmetic = on_cpu.arithmetic + on_card.arithmetic + shared.arithmetic;
  if (time.read_seconds >= time.always_seconds + time.expert_seconds) {
    time.bottleneck = Bottleneck::kDisk;
  } else {
    time.bottleneck = memory >= arithmetic ? Bottleneck::kMemory : Bottleneck::kArithmetic;
  }
  return time;
}

int64_t MicroBatches(int num_stages, const DecodeLoad& load) {
  const int64_t jobs = load.decoding_jobs();
  return CeilDiv(jobs, CeilDiv<int64_t>(jobs, num_stages));
}

double SendSeconds(const ModelConfig& config, const Box& from, const Box& to, double rows) {
  const double bytes = rows * static_cast<double>(config.hidden_size) * sizeof(float);
  double seconds = 0;
  for (const Box* end : {&from, &to}) {
    if (end->network.bytes > 0) seconds = std::max(seconds, bytes / end->network.bytes);
  }
  return seconds;
}

double HopLatency(const Box& from, const Box& to) {
  return std::max(from.network.latency_seconds, to.network.latency_seconds);
}

Box WithoutSteps(const ModelConfig& config, const StageSpec& stage, int num_stages, int64_t rows,
                 Box box) {
  box.memory.bytes -= ComputeStepMemory(config, rows).Of(stage, num_stages);
  if (box.card.count > 0) {
    const StepMemory steps = ComputeCardStepMemory(config, rows, kKvBlockTokens);
    box.card.bytes = std::max<int64_t>(0, box.card.bytes - steps.Of(stage, num_stages));
  }
  return box;
}

namespace {

struct Round {
  double seconds = 0;  // of all stages, one after the other, and the hops between them
  std::vector<StageTime> stages;
  StageTime slowest;
};

// Times the rate of a smaller chunk, which a larger one has to give.
constexpr double kWorthwhile = 1.1;

/// Those that are tried for the load's prompts, smallest first.
std::vector<int64_t> PromptChunks(const DecodeLoad& load) {
  const int64_t longest = std::clamp(load.context_tokens, kLeastPromptChunk, kMostPromptChunk);
  std::vector<int64_t> chunks;
  for (int64_t chunk = kLeastPromptChunk; chunk <= longest; chunk *= 2) chunks.push_back(chunk);
  return chunks;
}

/// A step of `rows` through `stages`. step_rows: what memory of steps is taken from the boxes for;
/// 0: theirs is what is left beside it.
absl::StatusOr<Round> PredictRound(const ModelConfig& config, const ModelCost& cost,
                                   absl::Span<const BoxStage> stages, const DecodeLoad& load,
                                   double rows, int64_t step_rows) {
  CARAVAN_CHECK(!stages.empty() && load.jobs >= 1);
  const auto num_stages = static_cast<int>(stages.size());
  Round round;
  for (size_t i = 0; i < stages.size(); ++i) {
    const StageSpec& stage = stages[i].stage;
    const Box& box = *stages[i].box;
    DecodeLoad stage_load = load;
    stage_load.kv_dtype = stages[i].kv_dtype.value_or(load.kv_dtype);
    absl::StatusOr<StageTime> part =
        step_rows == 0 ? PredictStage(config, cost.Of(stage), box, stage_load, rows)
                       : PredictStage(config, cost.Of(stage),
                                      WithoutSteps(config, stage, num_stages, step_rows, box),
                                      stage_load, rows);
    if (!part.ok()) return Annotate(part.status(), DescribeStage(stage));
    round.seconds += part->seconds;
    if (i + 1 < stages.size()) {
      part->send_seconds = SendSeconds(config, box, *stages[i + 1].box, rows);
      round.seconds += part->send_seconds + HopLatency(box, *stages[i + 1].box);
      if (part->send_seconds > part->seconds) part->bottleneck = Bottleneck::kNetwork;
    } else if (i > 0) {
      round.seconds += box.network.latency_seconds;
    }
    if (i == 0 || part->busy_seconds() > round.slowest.busy_seconds()) round.slowest = *part;
    round.stages.push_back(*std::move(part));
  }
  return round;
}

}  // namespace

absl::StatusOr<PipelineTime> PredictPipeline(const ModelConfig& config, const ModelCost& cost,
                                             absl::Span<const BoxStage> stages,
                                             const DecodeLoad& load) {
  const auto micro_batches =
      static_cast<double>(MicroBatches(static_cast<int>(stages.size()), load));
  const auto decoding = static_cast<double>(load.decoding_jobs());
  PipelineTime time;
  time.rows = decoding / micro_batches;
  CARAVAN_ASSIGN_OR_RETURN(Round round, PredictRound(config, cost, stages, load, time.rows, 0));
  time.round_seconds = round.seconds;
  // A micro-batch comes round after all stages, and each stage serves all micro-batches in turn.
  time.seconds_per_token = std::max(round.seconds, micro_batches * round.slowest.busy_seconds());
  time.tokens_per_second = decoding / time.seconds_per_token;
  time.stages = std::move(round.stages);
  time.slowest = round.slowest;
  return time;
}

absl::StatusOr<PromptTime> PredictPrompts(const ModelConfig& config, const ModelCost& cost,
                                          absl::Span<const BoxStage> stages,
                                          const DecodeLoad& load) {
  std::vector<PromptTime> times;
  for (const int64_t chunk : PromptChunks(load)) {
    DecodeLoad prompt = load;
    prompt.sampled_share = 1 / static_cast<double>(chunk);
    const absl::StatusOr<Round> round =
        PredictRound(config, cost, stages, prompt, static_cast<double>(chunk), chunk);
    // A smaller one fits.
    if (!round.ok() && !times.empty()) break;
    CARAVAN_RETURN_IF_ERROR(round.status());
    const double rate = static_cast<double>(chunk) / round->slowest.busy_seconds();
    times.push_back({.chunk_tokens = chunk, .tokens_per_second = rate, .slowest = round->slowest});
  }
  double best = 0;
  for (const PromptTime& time : times) best = std::max(best, time.tokens_per_second);
  return *std::find_if(times.begin(), times.end(), [&](const PromptTime& time) {
    return kWorthwhile * time.tokens_per_second >= best;
  });
}

absl::StatusOr<double> PredictFirstToken(const ModelConfig& config, const ModelCost& cost,
                                         absl::Span<const BoxStage> stages, const DecodeLoad& load,
                                         int64_t prompt_tokens, int64_t chunk_tokens) {
  CARAVAN_CHECK(prompt_tokens >= 1 && chunk_tokens >= 1);
  // Chunks that are alike, none larger than chunk_tokens; their rows look back on half of the
  // prompt.
  const int64_t chunks = CeilDiv(prompt_tokens, chunk_tokens);
  const double rows = static_cast<double>(prompt_tokens) / static_cast<double>(chunks);
  DecodeLoad prompt = load;
  prompt.decoding = 1;
  prompt.attended = CeilDiv<int64_t>(prompt_tokens, 2);
  prompt.sampled_share = 1 / rows;
  CARAVAN_ASSIGN_OR_RETURN(const Round round,
                           PredictRound(config, cost, stages, prompt, rows, chunk_tokens));
  return round.seconds + static_cast<double>(chunks - 1) * round.slowest.busy_seconds();
}

absl::StatusOr<FirstToken> PredictSoonestFirstToken(const ModelConfig& config,
                                                    const ModelCost& cost,
                                                    absl::Span<const BoxStage> stages,
                                                    const DecodeLoad& load, int64_t prompt_tokens) {
  FirstToken soonest;
  for (const int64_t chunk : PromptChunks(load)) {
    const absl::StatusOr<double> seconds =
        PredictFirstToken(config, cost, stages, load, prompt_tokens, chunk);
    // A smaller one fits.
    if (!seconds.ok() && soonest.chunk_tokens > 0) break;
    CARAVAN_RETURN_IF_ERROR(seconds.status());
    if (soonest.chunk_tokens == 0 || *seconds < soonest.seconds) soonest = {chunk, *seconds};
  }
  return soonest;
}

}  // namespace caravan
