#include "coordinator/dashboard_json.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

namespace caravan {
namespace {

using ::nlohmann::json;

const char* Name(v1::WorkerState state) {
  switch (state) {
    case v1::WORKER_STATE_LOADING:
      return "loading";
    case v1::WORKER_STATE_READY:
      return "ready";
    default:
      return "spare";
  }
}

json StageJson(const v1::WorkerStatus& worker) {
  if (!worker.has_stage()) return nullptr;
  const v1::Stage& stage = worker.stage();
  return {{"first_layer", stage.first_layer()},
          {"end_layer", stage.end_layer()},
          {"embeds", stage.embeds()},
          {"has_head", stage.has_head()}};
}

/// The memory that the stage computes in.
json MemoryJson(const v1::WorkerStatus& worker, const PipelineStats& pipeline) {
  json parts = json::array();
  const bool ready = worker.state() == v1::WORKER_STATE_READY;
  const uint64_t expert_bytes = ready ? worker.expert_bytes() : 0;
  if (worker.loaded_bytes() > 0) {
    parts.push_back({{"what", "weights"}, {"bytes", worker.loaded_bytes() - expert_bytes}});
  }
  if (expert_bytes > 0) parts.push_back({{"what", "experts"}, {"bytes", expert_bytes}});
  if (worker.kv_blocks() > 0) {
    // Every stage uses as many blocks; one with more of them has more to spare.
    const uint64_t block_bytes = worker.kv_bytes() / worker.kv_blocks();
    uint64_t free_bytes = worker.kv_bytes();
    for (const auto& [what, blocks] : {std::pair{"KV in use", pipeline.kv_blocks_used},
                                       std::pair{"KV cached", pipeline.kv_blocks_cached}}) {
      // The numbers are of different moments, so they may not fit together.
      const uint64_t bytes = std::min(block_bytes * static_cast<uint64_t>(blocks), free_bytes);
      parts.push_back({{"what", what}, {"bytes", bytes}});
      free_bytes -= bytes;
    }
    parts.push_back({{"what", "KV free"}, {"bytes", free_bytes}});
  }
  // What running steps takes is said for cards only.
  const uint64_t counted = worker.loaded_bytes() + worker.kv_bytes();
  if (worker.card_bytes() > counted) {
    parts.push_back({{"what", "steps"}, {"bytes", worker.card_bytes() - counted}});
  }
  return {{"tier", worker.on_card() ? "VRAM" : "RAM"},
          {"total_bytes", worker.memory_budget_bytes()},
          {"parts", std::move(parts)}};
}

/// Where the experts were computed that steps chose since the worker joined; null: none yet, or it
/// has none out of its card's memory.
json CardExpertsJson(const v1::WorkerStatus& worker) {
  const v1::CardExpertLoad& load = worker.load().card_experts();
  const uint64_t chosen = load.hits() + load.copies() + load.on_cpu();
  if (worker.expert_slots() == 0 || chosen == 0) return nullptr;
  const auto share = [chosen](uint64_t part) {
    return static_cast<double>(part) / static_cast<double>(chosen);
  };
  return {{"hit_share", share(load.hits())},
          {"copied_share", share(load.copies())},
          {"on_cpu_share", share(load.on_cpu())},
          {"promotions", load.promotions()},
          {"copied_bytes", load.copied_bytes()}};
}

json NextHopJson(const v1::WorkerStatus& worker) {
  if (!worker.has_next()) return nullptr;
  return {{"to", worker.next().neighbour()},
          {"transport", worker.next().by_nccl() ? "NCCL" : "TCP"},
          {"why", worker.next().why()}};
}

/// Of the experts that steps chose since the worker joined, and that its card did not have; null:
/// none yet, or none is on disk.
json ExpertHitShare(const v1::WorkerStatus& worker) {
  const v1::ExpertLoad& load = worker.load().experts();
  const uint64_t chosen = load.hits() + load.misses();
  if (worker.expert_slots() == 0 || chosen == 0) return nullptr;
  return static_cast<double>(load.hits()) / static_cast<double>(chosen);
}

json BoxesJson(const DashboardInputs& inputs) {
  std::vector<const v1::WorkerStatus*> workers;
  for (const v1::WorkerStatus& worker : inputs.cluster.workers()) workers.push_back(&worker);
  std::sort(workers.begin(), workers.end(), [](const auto* a, const auto* b) {
    return std::tuple(!a->has_stage(), a->stage().first_layer(), a->worker_id()) <
           std::tuple(!b->has_stage(), b->stage().first_layer(), b->worker_id());
  });
  std::map<uint32_t, double> busy_shares;
  if (!inputs.history.empty()) busy_shares = inputs.history.back().busy_shares;
  json boxes = json::array();
  for (const v1::WorkerStatus* worker : workers) {
    const auto busy = busy_shares.find(worker->worker_id());
    const double loaded_share = worker->load_bytes() == 0
                                    ? 0
                                    : std::min(1.0, static_cast<double>(worker->loaded_bytes()) /
                                                        static_cast<double>(worker->load_bytes()));
    boxes.push_back(
        {{"worker_id", worker->worker_id()},
         {"name", worker->name()},
         {"address", worker->address()},
         {"device", worker->device()},
         {"state", Name(worker->state())},
         {"loaded_share", loaded_share},
         {"stage", StageJson(*worker)},
         {"weight_bytes", worker->stage_bytes()},
         {"experts", worker->experts()},
         {"expert_slots", worker->expert_slots()},
         {"expert_hit_share", ExpertHitShare(*worker)},
         {"on_card", worker->on_card()},
         {"card_experts", CardExpertsJson(*worker)},
         {"next_hop", NextHopJson(*worker)},
         {"tiers", json::array({MemoryJson(*worker, inputs.pipeline)})},
         {"busy_share",
          busy == busy_shares.end() || !worker->has_stage() ? json(nullptr) : json(busy->second)}});
  }
  return boxes;
}

json JobsJson(const DashboardInputs& inputs) {
  std::vector<const v1::JobSummary*> jobs;
  int64_t running = 0;
  for (const v1::JobSummary& job : inputs.jobs) {
    running += job.state() == v1::JOB_STATE_RUNNING;
    jobs.push_back(&job);
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const auto* a, const auto* b) {
    return (a->state() == v1::JOB_STATE_RUNNING) > (b->state() == v1::JOB_STATE_RUNNING);
  });
  json listed = json::array();
  for (size_t i = 0; i < std::min(jobs.size(), kMaxListedJobs); ++i) {
    const v1::JobSummary& job = *jobs[i];
    listed.push_back({{"id", job.job_id()},
                      {"state", job.state() == v1::JOB_STATE_RUNNING ? "running" : "queued"},
                      {"prompt_tokens", job.prompt_tokens()},
                      {"completion_tokens", job.completion_tokens()},
                      {"max_tokens", job.max_tokens()},
                      {"age_s", job.age_s()}});
  }
  return {{"running", running},
          {"queued", static_cast<int64_t>(jobs.size()) - running},
          {"listed", std::move(listed)}};
}

json OptionalSeconds(const std::optional<absl::Duration>& duration) {
  return duration.has_value() ? json(absl::ToDoubleSeconds(*duration)) : json(nullptr);
}

json HistoryJson(const DashboardInputs& inputs) {
  json history = {{"window_s", absl::ToDoubleSeconds(inputs.window)}};
  for (const char* series :
       {"age_s", "generated_tokens_per_s", "prompt_tokens_per_s", "running_jobs", "queued_jobs",
        "first_token_p50_s", "first_token_p99_s"}) {
    history[series] = json::array();
  }
  for (const LoadHistory::Sample& sample : inputs.history) {
    history["age_s"].push_back(absl::ToDoubleSeconds(inputs.now - sample.at));
    history["generated_tokens_per_s"].push_back(sample.generated_tokens_per_s);
    history["prompt_tokens_per_s"].push_back(sample.prompt_tokens_per_s);
    history["running_jobs"].push_back(sample.running_jobs);
    history["queued_jobs"].push_back(sample.queued_jobs);
    history["first_token_p50_s"].push_back(OptionalSeconds(sample.first_token_p50));
    history["first_token_p99_s"].push_back(OptionalSeconds(sample.first_token_p99));
  }
  return history;
}

}  // namespace

json DashboardJson(const DashboardInputs& inputs) {
  return {{"model", inputs.model},
          {"state", inputs.cluster.pipeline_state()},
          {"serving", inputs.cluster.serving()},
          {"plan_version", inputs.cluster.plan_version()},
          {"boxes", BoxesJson(inputs)},
          {"jobs", JobsJson(inputs)},
          {"history", HistoryJson(inputs)}};
}

}  // namespace caravan
