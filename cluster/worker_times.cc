#include "cluster/worker_times.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "cluster/fastest_split.h"
#include "cluster/step_time.h"

namespace caravan {
namespace {

// Of the search through all orders: some tenths of a second, for which the coordinator does nothing
// else. Twelve workers that all differ, with as many as 72 layers.
constexpr double kMostStates = 3e5;
// Of the search in one order: as long.
constexpr size_t kMostWorkers = 24;

/// As many longest sequences as the KV caches are to hold.
int64_t JobsOf(const PlannerOptions& options) {
  return std::max<int64_t>(1, options.kv_tokens / std::max<int64_t>(1, options.context_tokens));
}

/// Jobs of which all decode.
DecodeLoad LoadOf(const PlannerWorker& worker, const PlannerOptions& options, int64_t jobs) {
  return {.jobs = jobs,
          .context_tokens = std::max<int64_t>(1, options.context_tokens),
          .kv_dtype = worker.kv_dtype};
}

/// Of the worker's box what the stage has: room for what is always active, the load's KV caches and
/// so many experts. `box` is the worker's, and changed.
void GiveRoom(const PlannerWorker& worker, const LayerCost& stage, int64_t expert_slots,
              const DecodeLoad& load, Box& box) {
  const int64_t expert = stage.num_experts > 0 ? stage.expert_bytes / stage.num_experts : 0;
  const int64_t bytes = stage.always_active_bytes() +
                        KvCacheBytes(stage, load.kv_dtype, load.jobs * load.context_tokens) +
                        expert_slots * expert;
  box.disk.bytes = stage.weight_bytes;  // where they are read from, they lie
  if (worker.on_card) {
    box.card.count = 1;
    box.card.bytes = bytes;
    // For experts that the card has no room for.
    box.memory.bytes = expert_slots < stage.num_experts ? worker.box->memory.bytes : 0;
  } else {
    box.card = {};
    box.memory.bytes = bytes;
  }
}

/// Whether two workers are the same to the planner.
bool AreEqual(const PlannerWorker& a, const PlannerWorker& b) {
  const auto key = [](const PlannerWorker& worker) {
    const Box& box = *worker.box;
    const bool on_card = worker.on_card;
    return std::tuple(
        std::tuple(worker.memory_budget_bytes, worker.kv_dtype, worker.offloads,
                   worker.process_bytes, worker.kv_disk_bytes, worker.on_card, worker.has_nccl),
        std::tuple(box.cpu.multiply_adds, box.cpu.attention_multiply_adds, box.memory.read_bytes,
                   box.disk.read_bytes, box.network.bytes, box.network.latency_seconds),
        std::tuple(on_card ? box.card.read_bytes : 0, on_card ? box.card.multiply_adds : 0,
                   on_card ? box.card.pcie_bytes : 0, on_card ? box.memory.bytes : 0));
  };
  return key(a) == key(b);
}

/// Numbers of workers that are equal, in order of joining.
using Group = std::vector<int>;

std::vector<Group> GroupWorkers(absl::Span<const PlannerWorker> workers, bool one_each) {
  std::vector<Group> groups;
  for (size_t w = 0; w < workers.size(); ++w) {
    const auto equal = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return !one_each && AreEqual(workers[static_cast<size_t>(group.front())], workers[w]);
    });
    Group& group = equal == groups.end() ? groups.emplace_back() : *equal;
    group.push_back(static_cast<int>(w));
  }
  return groups;
}

std::vector<BoxKind> KindsOf(absl::Span<const PlannerWorker> workers,
                             const std::vector<Group>& groups) {
  std::vector<BoxKind> kinds;
  for (const Group& group : groups) {
    kinds.push_back(
        {&*workers[static_cast<size_t>(group.front())].box, static_cast<int>(group.size())});
  }
  return kinds;
}

/// Stages that cost the same: layers of a model are much alike, so that most stages are other ones'
/// equals, wherever they begin.
class EqualStages {
 public:
  explicit EqualStages(const PossibleStages& stages) : num_layers_(stages.num_layers()) {
    std::map<Key, int> numbers;
    for (int begin = 0; begin < num_layers_; ++begin) {
      for (int end = begin + 1; end <= num_layers_; ++end) {
        const Key key = KeyOf(stages, begin, end);
        numbers_[Index(begin, end)] =
            numbers.try_emplace(key, static_cast<int>(numbers.size())).first->second;
      }
    }
    size_ = static_cast<int>(numbers.size());
  }

  int size() const { return size_; }
  /// Which of them layers [begin, end) are, below size().
  int Of(int begin, int end) const { return numbers_[Index(begin, end)]; }

 private:
  /// What memory and time of a stage follow from: its costs, its layers and its ends.
  using Key = std::tuple<std::array<int64_t, 9>, int, bool, bool>;

  Key KeyOf(const PossibleStages& stages, int begin, int end) const {
    const LayerCost& cost = stages.Of(begin, end);
    return {{cost.weight_bytes, cost.expert_bytes, cost.num_experts, cost.expert_slot_bytes,
             cost.experts_per_token, cost.active_bytes_per_token, cost.flops_per_token,
             cost.sampled_flops_per_token, cost.kv_values_per_token},
            end - begin,
            begin == 0,
            end == num_layers_};
  }
  size_t Index(int begin, int end) const {
    return static_cast<size_t>(begin) * static_cast<size_t>(num_layers_) +
           static_cast<size_t>(end - 1);
  }

  const int num_layers_;
  int size_ = 0;
  std::vector<int> numbers_ =
      std::vector<int>(static_cast<size_t>(num_layers_) * static_cast<size_t>(num_layers_));
};

/// What stages take on each worker. Each stage that differs is computed once for each load.
class WorkerTimes {
 public:
  WorkerTimes(const PossibleStages& stages, absl::Span<const PlannerWorker> workers,
              const PlannerOptions& options)
      : options_(options),
        list_(Pointers(workers)),
        needs_(stages, options, list_, /*may_offload=*/true, StageNeeds::Order::kAny),
        equal_(stages),
        rooms_(workers.size() * static_cast<size_t>(equal_.size())),
        known_(rooms_.size()) {
    for (const PlannerWorker& worker : workers) {
      // Without names and sources, which cost more to copy than to compute with.
      Box& box = boxes_.emplace_back(*worker.box);
      static_cast<Box::Part&>(box.cpu) = static_cast<Box::Part&>(box.memory) =
          static_cast<Box::Part&>(box.disk) = static_cast<Box::Part&>(box.card) = {};
    }
  }

  /// Of a micro-batch of `rows` while `jobs` decode, for all of whose KV caches there is room.
  double Seconds(int w, int begin, int end, int64_t jobs, double rows) {
    if (jobs != jobs_ || rows != rows_) {
      jobs_ = jobs;
      rows_ = rows;
      std::fill(known_.begin(), known_.end(), std::nullopt);
    }
    std::optional<double>& known = known_[Index(w, begin, end)];
    if (!known.has_value()) known = Predict(w, begin, end, jobs, rows);
    return *known;
  }

 private:
  struct Room {
    bool fits = false;
    StageRoom room;
    int64_t expert_slots = 0;
  };

  size_t Index(int w, int begin, int end) const {
    return static_cast<size_t>(w) * static_cast<size_t>(equal_.size()) +
           static_cast<size_t>(equal_.Of(begin, end));
  }

  const Room& RoomOf(int w, int begin, int end) {
    std::optional<Room>& found = rooms_[Index(w, begin, end)];
    if (found.has_value()) return *found;
    Room& room = found.emplace();
    room.fits = needs_.Fits(w, begin, end);
    if (!room.fits) return room;
    room.room = needs_.RoomFor(w, begin, end);
    room.expert_slots = needs_.Of(w, begin, end).offloads
                            ? room.room.expert_slots
                            : needs_.stages().Of(begin, end).num_experts;
    return room;
  }

  double Predict(int w, int begin, int end, int64_t jobs, double rows) {
    const Room& room = RoomOf(w, begin, end);
    if (!room.fits || room.room.kv_tokens < jobs * options_.context_tokens) return kImpossible;
    const PlannerWorker& worker = needs_.worker(w);
    const DecodeLoad load = LoadOf(worker, options_, jobs);
    const LayerCost& stage = needs_.stages().Of(begin, end);
    Box& box = boxes_[static_cast<size_t>(w)];
    GiveRoom(worker, stage, room.expert_slots, load, box);
    const absl::StatusOr<StageTime> time = PredictStage(*options_.config, stage, box, load, rows);
    CARAVAN_CHECK(time.ok());
    return time->seconds;
  }

  static std::vector<const PlannerWorker*> Pointers(absl::Span<const PlannerWorker> workers) {
    std::vector<const PlannerWorker*> pointers;
    for (const PlannerWorker& worker : workers) pointers.push_back(&worker);
    return pointers;
  }

  const PlannerOptions& options_;
  const std::vector<const PlannerWorker*> list_;
  const StageNeeds needs_;
  std::vector<Box> boxes_;
  const EqualStages equal_;
  // By worker and, of those that differ, stage.
  std::vector<std::optional<Room>> rooms_;
  std::vector<std::optional<double>> known_;  // seconds, for jobs_ and rows_
  int64_t jobs_ = 0;
  double rows_ = 0;
};

}  // namespace

bool CanPlanByTime(absl::Span<const PlannerWorker> workers, const PlannerOptions& options) {
  return options.config != nullptr &&
         std::all_of(workers.begin(), workers.end(),
                     [](const PlannerWorker& worker) { return worker.box.has_value(); });
}

std::optional<WorkerSplit> SplitByTime(const PossibleStages& stages,
                                       absl::Span<const PlannerWorker> workers,
                                       const PlannerOptions& options) {
  const int num_layers = stages.num_layers();
  FastestSplitOptions search;
  std::vector<Group> groups = GroupWorkers(workers, /*one_each=*/false);
  if (FastestSplitStates(num_layers, KindsOf(workers, groups)) > kMostStates) {
    if (workers.size() > kMostWorkers) return std::nullopt;
    search.in_order = true;
    groups = GroupWorkers(workers, /*one_each=*/true);
  }
  const std::vector<BoxKind> kinds = KindsOf(workers, groups);
  WorkerTimes times(stages, workers, options);
  std::optional<Split> best;
  double rate = 0;  // tokens/s of the best
  const bool alone = options.aim == PlanAim::kInteractive;
  for (int64_t jobs = alone ? 1 : JobsOf(options); jobs >= 1; jobs /= 2) {
    const auto seconds = [&](int kind, int begin, int end, double rows) {
      return times.Seconds(groups[static_cast<size_t>(kind)].front(), begin, end, jobs, rows);
    };
    search.load = {.jobs = jobs, .context_tokens = 1};  // of stages' times `seconds` knows more
    if (rate > 0) search.below = static_cast<double>(jobs) / rate;
    std::optional<Split> split = FastestSplit(*options.config, num_layers, kinds, seconds, search);
    if (!split.has_value()) continue;
    rate = static_cast<double>(jobs) / split->cost;
    best = std::move(split);
  }
  if (!best.has_value()) return std::nullopt;
  WorkerSplit chosen;
  std::vector<size_t> used(groups.size(), 0);
  for (const PickedStage& stage : best->stages) {
    const auto kind = static_cast<size_t>(stage.kind);
    const int w = groups[kind][used[kind]++];
    chosen.workers.push_back(&workers[static_cast<size_t>(w)]);
    chosen.ends.push_back(stage.end);
  }
  return chosen;
}

PlanForecast ForetellPlan(const ModelCost& cost, const PipelinePlan& plan,
                          absl::Span<const PlannerWorker* const> workers,
                          const PlannerOptions& options) {
  CARAVAN_CHECK(plan.stages.size() == workers.size());
  // As many jobs as the stage that caches fewest tokens has room for.
  int64_t jobs = JobsOf(options);
  for (size_t i = 0; i < workers.size(); ++i) {
    jobs = std::min(jobs, plan.stages[i].kv_tokens / std::max<int64_t>(1, options.context_tokens));
  }
  PlanForecast forecast;
  forecast.jobs = std::max<int64_t>(1, jobs);
  for (const int64_t decoding : {forecast.jobs, int64_t{1}}) {
    std::vector<Box> boxes(workers.size());
    std::vector<BoxStage> stages;
    for (size_t i = 0; i < workers.size(); ++i) {
      const StagePlan& stage = plan.stages[i];
      const LayerCost of_stage = cost.Of(stage.stage);
      const int64_t slots = stage.expert_bytes > 0 ? stage.expert_bytes / of_stage.expert_slot_bytes
                                                   : of_stage.num_experts;
      boxes[i] = *workers[i]->box;
      GiveRoom(*workers[i], of_stage, slots, LoadOf(*workers[i], options, decoding), boxes[i]);
      stages.push_back({&boxes[i], stage.stage, workers[i]->kv_dtype});
    }
    const absl::StatusOr<PipelineTime> time =
        PredictPipeline(*options.config, cost, stages, LoadOf(*workers.front(), options, decoding));
    CARAVAN_CHECK(time.ok());
    if (decoding == 1) forecast.tokens_per_second_alone = time->tokens_per_second;
    if (decoding != forecast.jobs) continue;
    forecast.tokens_per_second = time->tokens_per_second;
    const auto slowest = std::max_element(
        time->stages.begin(), time->stages.end(),
        [](const StageTime& a, const StageTime& b) { return a.busy_seconds() < b.busy_seconds(); });
    forecast.slowest_stage = static_cast<int>(slowest - time->stages.begin());
    forecast.bottleneck = slowest->bottleneck;
  }
  return forecast;
}

}  // namespace caravan
