#include "coordinator/metrics.h"

#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/text_serializer.h"

namespace caravan {
namespace {

using ::prometheus::ClientMetric;
using ::prometheus::MetricFamily;
using ::prometheus::MetricType;
using Buckets = ::prometheus::Histogram::BucketBoundaries;
using Labels = std::vector<ClientMetric::Label>;

// A tiny model answers within milliseconds; a long prompt of a 671B model takes minutes.
const Buckets kFirstTokenSeconds = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,  2.5,
                                    5,    10,    30,   60,  120,  300, 600};
const Buckets kBetweenTokensSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                       0.25,  0.5,    1,     2.5,  5,     10,   30};
// Bulk jobs may wait for a night.
const Buckets kJobSeconds = {0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400, 43200};
const Buckets kStepRows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
const Buckets kStepSeconds = kBetweenTokensSeconds;

const char* Name(JobPriority priority) {
  return priority == JobPriority::kBulk ? "bulk" : "interactive";
}

const char* Name(JobOutcome outcome) {
  switch (outcome) {
    case JobOutcome::kFinished:
      return "finished";
    case JobOutcome::kCancelled:
      return "cancelled";
    case JobOutcome::kFailed:
      return "failed";
  }
  return "?";
}

/// One family of plain numbers, built up sample by sample.
class Numbers {
 public:
  Numbers(MetricType type, const char* name, const char* help) {
    family_.type = type;
    family_.name = name;
    family_.help = help;
  }

  void Add(double value, Labels labels = {}) {
    ClientMetric& metric = family_.metric.emplace_back();
    metric.label = std::move(labels);
    (family_.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  }
  void Add(int64_t value, Labels labels = {}) {
    Add(static_cast<double>(value), std::move(labels));
  }

  MetricFamily Take() { return std::move(family_); }

 private:
  MetricFamily family_;
};

/// A family of one number without labels.
MetricFamily One(MetricType type, const char* name, const char* help, int64_t value) {
  Numbers numbers(type, name, help);
  numbers.Add(value);
  return numbers.Take();
}

void AppendPipeline(const PipelineStats& stats, std::vector<MetricFamily>& out) {
  constexpr MetricType kCounter = MetricType::Counter;
  out.push_back(One(kCounter, "caravan_prompt_tokens_total",
                    "Prompt tokens that were prefilled or found in the KV cache.",
                    stats.prompt_tokens));
  out.push_back(One(kCounter, "caravan_generated_tokens_total", "Tokens that jobs were given.",
                    stats.generated_tokens));
  out.push_back(One(kCounter, "caravan_prefix_cache_query_tokens_total",
                    "Prompt tokens that were looked up in the KV cache.",
                    stats.prefix_cache_query_tokens));
  out.push_back(One(kCounter, "caravan_prefix_cache_hit_tokens_total",
                    "Prompt tokens that were found in the KV cache.",
                    stats.prefix_cache_hit_tokens));
  out.push_back(One(kCounter, "caravan_preemptions_total",
                    "Sequences that gave their KV blocks back, to be prefilled again.",
                    stats.preemptions));
  out.push_back(
      One(kCounter, "caravan_interruptions_total",
          "Running jobs that were queued again, as their pipeline went or a step of theirs failed.",
          stats.interruptions));
  out.push_back(
      One(kCounter, "caravan_steps_total", "Steps that went round the ring.", stats.steps));
  out.push_back(One(kCounter, "caravan_draft_tokens_total",
                    "Tokens that were drafted and then verified.", stats.draft_tokens));
  out.push_back(One(kCounter, "caravan_draft_accepted_tokens_total",
                    "Drafted tokens that the model would have chosen as well.",
                    stats.draft_accepted_tokens));
  out.push_back(One(MetricType::Gauge, "caravan_speculation_active",
                    "1 while steps carry drafts, 0 while that does not pay or was not asked for.",
                    stats.speculating ? 1 : 0));
  out.push_back(One(MetricType::Gauge, "caravan_steps_in_flight", "Steps on their way round.",
                    stats.steps_in_flight));

  Numbers jobs(MetricType::Gauge, "caravan_jobs", "Jobs that wait or run.");
  for (const auto& [counts, priority] : {std::pair{stats.interactive, JobPriority::kInteractive},
                                         std::pair{stats.bulk, JobPriority::kBulk}}) {
    jobs.Add(counts.queued, {{"priority", Name(priority)}, {"state", "queued"}});
    jobs.Add(counts.running, {{"priority", Name(priority)}, {"state", "running"}});
  }
  out.push_back(jobs.Take());

  Numbers blocks(MetricType::Gauge, "caravan_kv_blocks",
                 "KV blocks of the stage that has fewest, by what they hold.");
  blocks.Add(stats.kv_blocks_used, {{"state", "used"}});
  blocks.Add(stats.kv_blocks_cached, {{"state", "cached"}});
  blocks.Add(stats.kv_blocks_total - stats.kv_blocks_used - stats.kv_blocks_cached,
             {{"state", "free"}});
  out.push_back(blocks.Take());
}

/// A worker's name, with its number where the name alone would stand for two: every time series
/// may occur only once.
std::string WorkerLabel(const v1::GetStatusResponse& cluster, const v1::WorkerStatus& worker) {
  int same_name = 0;
  for (const v1::WorkerStatus& each : cluster.workers()) same_name += each.name() == worker.name();
  return same_name == 1 ? worker.name() : absl::StrCat(worker.name(), " ", worker.worker_id());
}

/// The worker's place in the ring, counted from 0; "spare" without one.
std::string StageLabel(const v1::GetStatusResponse& cluster, const v1::WorkerStatus& worker) {
  if (!worker.has_stage()) return "spare";
  int before = 0;
  for (const v1::WorkerStatus& each : cluster.workers()) {
    before += each.has_stage() && each.stage().first_layer() < worker.stage().first_layer();
  }
  return absl::StrCat(before);
}

Labels WorkerLabels(const v1::GetStatusResponse& cluster, const v1::WorkerStatus& worker) {
  return {{"stage", StageLabel(cluster, worker)}, {"worker", WorkerLabel(cluster, worker)}};
}

/// Of workers whose stages left experts on disk.
void AppendExperts(const v1::GetStatusResponse& cluster, std::vector<MetricFamily>& out) {
  struct Counter {
    const char* name;
    const char* help;
    double (*value)(const v1::ExpertLoad& load);
  };
  static constexpr Counter kCounters[] = {
      {"caravan_worker_expert_hits_total",
       "Experts that a step chose for a layer and found in a worker's memory.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.hits()); }},
      {"caravan_worker_expert_misses_total",
       "Experts that a step chose for a layer and waited for.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.misses()); }},
      {"caravan_worker_expert_reads_total", "Experts that a worker read from its disk.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.reads()); }},
      {"caravan_worker_expert_read_bytes_total", "Bytes of experts that a worker read.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.read_bytes()); }},
      {"caravan_worker_expert_evictions_total",
       "Experts that gave way to others in a worker's memory.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.evictions()); }},
      {"caravan_worker_expert_failovers_total",
       "Bad reads of one copy of an expert, after which another was read.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.failovers()); }},
      {"caravan_worker_expert_guesses_total",
       "Experts whose read was begun before a step chose them.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.guesses()); }},
      {"caravan_worker_expert_guessable_total",
       "Experts that a step chose in a layer that was guessed for, and did not find in memory but "
       "for guesses.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.guessable()); }},
      {"caravan_worker_expert_guesses_used_total",
       "Experts that were read before a step chose them, and then were chosen.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.guesses_used()); }},
      {"caravan_worker_expert_guesses_wasted_total",
       "Experts whose read was begun before a step chose them, and that none did.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.guesses_wasted()); }},
      {"caravan_worker_expert_wasted_bytes_total",
       "Bytes that a worker read of experts that no step chose then.",
       [](const v1::ExpertLoad& load) { return static_cast<double>(load.wasted_bytes()); }},
      {"caravan_worker_expert_wait_seconds_total", "Time in which steps waited for experts.",
       [](const v1::ExpertLoad& load) { return load.waited_s(); }},
  };
  for (const Counter& counter : kCounters) {
    Numbers numbers(MetricType::Counter, counter.name, counter.help);
    for (const v1::WorkerStatus& worker : cluster.workers()) {
      if (!worker.load().has_experts()) continue;
      numbers.Add(counter.value(worker.load().experts()), WorkerLabels(cluster, worker));
    }
    out.push_back(numbers.Take());
  }
}

/// Of workers whose stages had an archive of KV blocks.
void AppendKvArchives(const v1::GetStatusResponse& cluster, std::vector<MetricFamily>& out) {
  struct Counter {
    const char* name;
    const char* help;
    uint64_t (*value)(const v1::KvArchiveLoad& load);
  };
  static constexpr Counter kCounters[] = {
      {"caravan_worker_kv_archived_blocks_total",
       "Full KV blocks that a worker wrote to its archive.",
       [](const v1::KvArchiveLoad& load) { return load.kept(); }},
      {"caravan_worker_kv_restored_from_disk_blocks_total",
       "KV blocks that a worker filled from its own archive.",
       [](const v1::KvArchiveLoad& load) { return load.restored_from_disk(); }},
      {"caravan_worker_kv_restored_from_peers_blocks_total",
       "KV blocks that a worker filled with layers from other workers' archives.",
       [](const v1::KvArchiveLoad& load) { return load.restored_from_peers(); }},
      {"caravan_worker_kv_replicas_sent_total",
       "KV blocks that a worker sent to another worker's archive.",
       [](const v1::KvArchiveLoad& load) { return load.replicas_sent(); }},
      {"caravan_worker_kv_replica_bytes_total", "Bytes of those.",
       [](const v1::KvArchiveLoad& load) { return load.replica_bytes(); }},
      {"caravan_worker_kv_replicas_dropped_total",
       "KV blocks that were to be sent to another worker's archive and were not.",
       [](const v1::KvArchiveLoad& load) { return load.replicas_dropped(); }},
  };
  for (const Counter& counter : kCounters) {
    Numbers numbers(MetricType::Counter, counter.name, counter.help);
    for (const v1::WorkerStatus& worker : cluster.workers()) {
      if (!worker.load().has_kv_archive()) continue;
      numbers.Add(static_cast<int64_t>(counter.value(worker.load().kv_archive())),
                  WorkerLabels(cluster, worker));
    }
    out.push_back(numbers.Take());
  }
}

/// Of workers with cards: what they take of them, and where experts were computed that they have no
/// room for.
void AppendCards(const v1::GetStatusResponse& cluster, std::vector<MetricFamily>& out) {
  Numbers taken(MetricType::Gauge, "caravan_worker_card_bytes",
                "What a worker's stage takes of its card.");
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    if (!worker.on_card()) continue;
    taken.Add(static_cast<int64_t>(worker.card_bytes()), WorkerLabels(cluster, worker));
  }
  out.push_back(taken.Take());

  struct Counter {
    const char* name;
    const char* help;
    uint64_t (*value)(const v1::CardExpertLoad& load);
  };
  static constexpr Counter kCounters[] = {
      {"caravan_worker_card_expert_hits_total",
       "Experts that a step chose for a layer and found in the memory of a worker's card.",
       [](const v1::CardExpertLoad& load) { return load.hits(); }},
      {"caravan_worker_card_expert_copies_total",
       "Experts that a step chose for a layer and that were copied to the card for it.",
       [](const v1::CardExpertLoad& load) { return load.copies(); }},
      {"caravan_worker_card_expert_on_cpu_total",
       "Experts that a step chose for a layer and that the CPU computed.",
       [](const v1::CardExpertLoad& load) { return load.on_cpu(); }},
      {"caravan_worker_card_expert_promotions_total",
       "Experts that were copied to the card for later steps while the CPU computed them.",
       [](const v1::CardExpertLoad& load) { return load.promotions(); }},
      {"caravan_worker_card_expert_copied_bytes_total",
       "Bytes of experts that were copied to a worker's card in steps.",
       [](const v1::CardExpertLoad& load) { return load.copied_bytes(); }},
  };
  for (const Counter& counter : kCounters) {
    Numbers numbers(MetricType::Counter, counter.name, counter.help);
    for (const v1::WorkerStatus& worker : cluster.workers()) {
      if (!worker.load().has_card_experts()) continue;
      numbers.Add(static_cast<int64_t>(counter.value(worker.load().card_experts())),
                  WorkerLabels(cluster, worker));
    }
    out.push_back(numbers.Take());
  }
}

/// By what a worker's steps go on to the next one.
const char* NextHopLabel(const v1::WorkerStatus& worker) {
  if (!worker.has_next()) return "none";
  return worker.next().by_nccl() ? "nccl" : "tcp";
}

void AppendCluster(const Metrics::Snapshot& snapshot, std::vector<MetricFamily>& out) {
  const v1::GetStatusResponse& cluster = snapshot.cluster;
  out.push_back(One(MetricType::Gauge, "caravan_pipeline_serving",
                    "1 while a full pipeline serves, else 0.", cluster.serving() ? 1 : 0));
  if (snapshot.certificate_expires.has_value()) {
    Numbers certificate(MetricType::Gauge, "caravan_certificate_expires_seconds",
                        "How long the coordinator's certificate is good yet; negative once it is "
                        "not any more.");
    certificate.Add(absl::ToDoubleSeconds(*snapshot.certificate_expires), {});
    out.push_back(certificate.Take());
  }

  Numbers foretold(
      MetricType::Gauge, "caravan_foretold_tokens_per_second",
      "What the workers' figures say that the present plan gives while as many of the "
      "longest sequences decode as its KV caches have room for; 0 where it was made by "
      "memory alone.");
  foretold.Add(cluster.forecast().tokens_per_s());
  out.push_back(foretold.Take());

  std::map<v1::WorkerState, int64_t> in_state;
  for (const v1::WorkerStatus& worker : cluster.workers()) ++in_state[worker.state()];
  Numbers workers(MetricType::Gauge, "caravan_workers", "Workers that are here.");
  workers.Add(in_state[v1::WORKER_STATE_SPARE], {{"state", "spare"}});
  workers.Add(in_state[v1::WORKER_STATE_LOADING], {{"state", "loading"}});
  workers.Add(in_state[v1::WORKER_STATE_READY], {{"state", "ready"}});
  out.push_back(workers.Take());

  Numbers busy(MetricType::Counter, "caravan_worker_busy_seconds_total",
               "Time in which a worker worked on a step.");
  Numbers ready(MetricType::Counter, "caravan_worker_ready_seconds_total",
                "Time in which a worker's stage was ready, working or waiting for steps.");
  Numbers rows(MetricType::Counter, "caravan_worker_rows_total",
               "Tokens that went through a worker's stage.");
  Numbers idle(MetricType::Gauge, "caravan_worker_idle_ratio",
               "Share of the last seconds in which a worker's stage waited for steps.");
  Numbers weights(MetricType::Gauge, "caravan_worker_weight_bytes",
                  "Memory of the weights of a worker's stage, with its slots for experts.");
  Numbers slots(MetricType::Gauge, "caravan_worker_expert_slots",
                "Experts that fit a worker's memory where the others stay on its disk, else 0.");
  Numbers kv(MetricType::Gauge, "caravan_worker_kv_bytes", "Memory of a worker's KV blocks.");
  Numbers kv_disk(MetricType::Gauge, "caravan_worker_kv_disk_bytes",
                  "What KV blocks take of a worker's disk.");
  Numbers budget(MetricType::Gauge, "caravan_worker_memory_budget_bytes",
                 "What a worker's weights and KV blocks may take together.");
  Numbers info(MetricType::Gauge, "caravan_worker_info",
               "1: what a worker computes with, and by what its steps go on to the next one.");
  for (const v1::WorkerStatus& worker : cluster.workers()) {
    const Labels labels = WorkerLabels(cluster, worker);
    Labels what = labels;
    what.push_back({"device", worker.device()});
    what.push_back({"next_hop", NextHopLabel(worker)});
    info.Add(int64_t{1}, std::move(what));
    busy.Add(worker.load().busy_s(), labels);
    ready.Add(worker.load().total_s(), labels);
    rows.Add(static_cast<int64_t>(worker.load().rows()), labels);
    const auto share = snapshot.busy_shares.find(worker.worker_id());
    if (share != snapshot.busy_shares.end()) idle.Add(1 - share->second, labels);
    weights.Add(static_cast<int64_t>(worker.loaded_bytes()), labels);
    slots.Add(int64_t{worker.expert_slots()}, labels);
    kv.Add(static_cast<int64_t>(worker.kv_bytes()), labels);
    kv_disk.Add(static_cast<int64_t>(worker.kv_disk_bytes()), labels);
    budget.Add(static_cast<int64_t>(worker.memory_budget_bytes()), labels);
  }
  for (Numbers* numbers :
       {&busy, &ready, &rows, &idle, &weights, &slots, &kv, &kv_disk, &budget, &info}) {
    out.push_back(numbers->Take());
  }
  AppendExperts(cluster, out);
  AppendKvArchives(cluster, out);
  AppendCards(cluster, out);
}

}  // namespace

Metrics::Metrics()
    : time_to_first_token_(AddByPriority("caravan_time_to_first_token_seconds",
                                         "From a job's submission to its first token.",
                                         kFirstTokenSeconds)),
      time_between_tokens_(AddByPriority("caravan_time_between_tokens_seconds",
                                         "From one token of a job to its next.",
                                         kBetweenTokensSeconds)),
      job_duration_(AddByPriority("caravan_job_duration_seconds",
                                  "From a job's submission to its end, whatever the end.",
                                  kJobSeconds)),
      step_rows_(AddHistogram("caravan_step_rows", "Tokens that a step carried.", kStepRows)),
      step_round_trip_(AddHistogram("caravan_step_round_trip_seconds",
                                    "From the sending of a step to its coming home.",
                                    kStepSeconds)),
      jobs_(&prometheus::BuildCounter()
                 .Name("caravan_jobs_total")
                 .Help("Jobs that came to an end.")
                 .Register(registry_)),
      http_requests_(&prometheus::BuildCounter()
                          .Name("caravan_http_requests_total")
                          .Help("HTTP requests that were answered.")
                          .Register(registry_)),
      http_connections_(&prometheus::BuildGauge()
                             .Name("caravan_http_connections")
                             .Help("Open HTTP connections.")
                             .Register(registry_)
                             .Add({})) {
  // There from the first reading on, so that rates do not miss the first event.
  for (const JobPriority priority : {JobPriority::kInteractive, JobPriority::kBulk}) {
    for (const JobOutcome outcome :
         {JobOutcome::kFinished, JobOutcome::kCancelled, JobOutcome::kFailed}) {
      jobs_->Add({{"priority", Name(priority)}, {"outcome", Name(outcome)}});
    }
  }
}

Metrics::ByPriority Metrics::AddByPriority(const std::string& name, const std::string& help,
                                           const Buckets& buckets) {
  HistogramFamily& family = prometheus::BuildHistogram().Name(name).Help(help).Register(registry_);
  return {&family.Add({{"priority", Name(JobPriority::kInteractive)}}, buckets),
          &family.Add({{"priority", Name(JobPriority::kBulk)}}, buckets)};
}

prometheus::Histogram* Metrics::AddHistogram(const std::string& name, const std::string& help,
                                             const Buckets& buckets) {
  return &prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add({}, buckets);
}

void Metrics::OnFirstToken(JobPriority priority, absl::Duration since_submit) {
  time_to_first_token_.Of(priority).Observe(absl::ToDoubleSeconds(since_submit));
}

void Metrics::OnTokenGap(JobPriority priority, absl::Duration gap) {
  time_between_tokens_.Of(priority).Observe(absl::ToDoubleSeconds(gap));
}

void Metrics::OnJobEnded(JobPriority priority, JobOutcome outcome, absl::Duration since_submit) {
  jobs_->Add({{"priority", Name(priority)}, {"outcome", Name(outcome)}}).Increment();
  job_duration_.Of(priority).Observe(absl::ToDoubleSeconds(since_submit));
}

void Metrics::OnStepReturned(int64_t rows, absl::Duration round_trip) {
  step_rows_->Observe(static_cast<double>(rows));
  step_round_trip_->Observe(absl::ToDoubleSeconds(round_trip));
}

void Metrics::OnAnswered(absl::string_view route, int status) {
  const std::string path(route.empty() ? "other" : route);
  http_requests_->Add({{"path", path}, {"code", absl::StrCat(status)}}).Increment();
}

std::vector<MetricFamily> Metrics::Collect(const Snapshot& snapshot) const {
  std::vector<MetricFamily> families = registry_.Collect();
  AppendPipeline(snapshot.pipeline, families);
  AppendCluster(snapshot, families);
  return families;
}

std::string Metrics::Render(const Snapshot& snapshot) const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, Collect(snapshot));
  return out.str();
}

}  // namespace caravan
