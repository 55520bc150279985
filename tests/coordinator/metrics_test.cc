#include "coordinator/metrics.h"

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ContainerEq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;

v1::WorkerStatus Worker(uint32_t id, const std::string& name, uint32_t first_layer,
                        uint32_t end_layer) {
  v1::WorkerStatus worker;
  worker.set_worker_id(id);
  worker.set_name(name);
  worker.set_state(v1::WORKER_STATE_READY);
  worker.mutable_stage()->set_first_layer(first_layer);
  worker.mutable_stage()->set_end_layer(end_layer);
  return worker;
}

/// A cluster in which nothing is missing, so that every metric has a sample.
Metrics::Snapshot FullSnapshot() {
  Metrics::Snapshot snapshot;
  snapshot.cluster.set_serving(true);
  snapshot.cluster.mutable_forecast()->set_tokens_per_s(2.5);
  *snapshot.cluster.add_workers() = Worker(1, "box-a", 0, 5);
  *snapshot.cluster.add_workers() = Worker(2, "box-b", 5, 9);
  v1::WorkerStatus& card = *snapshot.cluster.mutable_workers(1);
  card.set_on_card(true);
  card.mutable_load()->mutable_experts();
  card.mutable_load()->mutable_card_experts();
  card.mutable_load()->mutable_kv_archive();
  snapshot.busy_shares = {{1, 0.75}, {2, 0.5}};
  snapshot.certificate_expires = absl::Hours(1);
  return snapshot;
}

/// "type label,label" by metric.
using Described = std::map<std::string, std::string>;

Described Exported() {
  Metrics metrics;
  metrics.OnAnswered("/health", 200);
  Described described;
  for (const prometheus::MetricFamily& family : metrics.Collect(FullSnapshot())) {
    std::set<std::string> labels;
    for (const prometheus::ClientMetric& metric : family.metric) {
      for (const auto& label : metric.label) labels.insert(label.name);
    }
    const char* type = family.type == prometheus::MetricType::Counter ? "counter"
                       : family.type == prometheus::MetricType::Gauge ? "gauge"
                                                                      : "histogram";
    EXPECT_EQ(described.count(family.name), 0u) << family.name << " is exported twice";
    described[family.name] = std::string(type) + " " + absl::StrJoin(labels, ",");
  }
  return described;
}

std::string ReadSource(const std::string& path) {
  std::ifstream in(std::string(CARAVAN_SOURCE_DIR "/") + path);
  EXPECT_TRUE(in.is_open()) << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(MetricsTest, ThePageListsExactlyWhatIsExported) {
  Described page;
  const std::regex row("^\\| `(caravan_[a-z_]+)` \\| ([a-z]+) \\| (.*?) ?\\| [^|]+\\|$");
  const std::vector<std::string> lines = absl::StrSplit(ReadSource("docs/metrics.md"), '\n');
  for (const std::string& line : lines) {
    std::smatch match;
    if (!std::regex_match(line, match, row)) {
      EXPECT_THAT(line, Not(testing::StartsWith("| `caravan_")));
      continue;
    }
    std::set<std::string> labels;
    const std::string cell = match[3];
    const std::regex label("`([a-z_]+)`");
    for (std::sregex_iterator it(cell.begin(), cell.end(), label), end; it != end; ++it) {
      labels.insert((*it)[1]);
    }
    page[match[1]] = match[2].str() + " " + absl::StrJoin(labels, ",");
  }
  EXPECT_THAT(page, ContainerEq(Exported()));
}

TEST(MetricsTest, NamesFollowTheRules) {
  for (const auto& [name, described] : Exported()) {
    EXPECT_TRUE(std::regex_match(name, std::regex("caravan(_[a-z]+)+"))) << name;
    const bool counter = described.rfind("counter", 0) == 0;
    EXPECT_EQ(std::regex_match(name, std::regex(".*_total")), counter) << name;
    for (const char* unit : {"_ms", "_millis", "_kb", "_mb", "_percent"}) {
      EXPECT_THAT(name, Not(HasSubstr(unit)));
    }
  }
}

/// The metrics that a text names, a histogram's series by its own name; what is none as it stands.
std::set<std::string> MetricsIn(const std::string& text, const Described& exported) {
  std::set<std::string> used;
  const std::regex metric("caravan_[a-z_]+");
  for (std::sregex_iterator it(text.begin(), text.end(), metric), end; it != end; ++it) {
    const std::string name = it->str();
    const std::string base = std::regex_replace(name, std::regex("_(bucket|sum|count)$"), "");
    const bool histogram =
        exported.count(base) > 0 && base != name && exported.at(base).rfind("histogram", 0) == 0;
    used.insert(histogram ? base : name);
  }
  return used;
}

std::set<std::string> NamesOf(const Described& exported) {
  std::set<std::string> names;
  for (const auto& [name, described] : exported) names.insert(name);
  return names;
}

TEST(MetricsTest, TheGrafanaDashboardShowsExactlyWhatIsExported) {
  const Described exported = Exported();
  const absl::StatusOr<nlohmann::json> dashboard =
      ReadJsonFile(CARAVAN_SOURCE_DIR "/deploy/grafana/caravan.json");
  ASSERT_TRUE(dashboard.ok()) << dashboard.status().ToString();
  std::string expressions;
  std::set<int> ids;
  for (const nlohmann::json& panel : dashboard->at("panels")) {
    EXPECT_TRUE(ids.insert(panel.at("id").get<int>()).second) << panel.at("id");
    for (const nlohmann::json& target : panel.value("targets", nlohmann::json::array())) {
      expressions += target.at("expr").get<std::string>() + "\n";
    }
  }
  EXPECT_THAT(MetricsIn(expressions, exported), ContainerEq(NamesOf(exported)));
}

TEST(MetricsTest, AlertsUseOnlyWhatIsExported) {
  const Described exported = Exported();
  const std::set<std::string> used = MetricsIn(ReadSource("deploy/prometheus-rules.yml"), exported);
  EXPECT_GE(used.size(), 5u);
  EXPECT_THAT(NamesOf(exported), IsSupersetOf(used));
}

TEST(MetricsTest, RendersWhatWasObserved) {
  Metrics metrics;
  metrics.OnFirstToken(JobPriority::kInteractive, absl::Milliseconds(200));
  metrics.OnTokenGap(JobPriority::kBulk, absl::Milliseconds(20));
  metrics.OnJobEnded(JobPriority::kBulk, JobOutcome::kCancelled, absl::Seconds(3));
  metrics.OnStepReturned(48, absl::Milliseconds(70));
  metrics.OnAnswered("/v1/models/{}", 404);
  metrics.OnAnswered("", 401);
  metrics.OnConnectionOpened();
  metrics.OnConnectionOpened();
  metrics.OnConnectionClosed();
  const std::string text = metrics.Render({});
  for (const char* line : {
           "caravan_time_to_first_token_seconds_bucket{priority=\"interactive\",le=\"0.1\"} 0",
           "caravan_time_to_first_token_seconds_bucket{priority=\"interactive\",le=\"0.25\"} 1",
           "caravan_time_between_tokens_seconds_count{priority=\"bulk\"} 1",
           "caravan_job_duration_seconds_sum{priority=\"bulk\"} 3",
           "caravan_jobs_total{outcome=\"cancelled\",priority=\"bulk\"} 1",
           "caravan_jobs_total{outcome=\"finished\",priority=\"bulk\"} 0",
           "caravan_step_rows_bucket{le=\"32\"} 0",
           "caravan_step_rows_bucket{le=\"64\"} 1",
           "caravan_step_round_trip_seconds_count 1",
           "caravan_http_requests_total{code=\"404\",path=\"/v1/models/{}\"} 1",
           "caravan_http_requests_total{code=\"401\",path=\"other\"} 1",
           "caravan_http_connections 1",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
}

TEST(MetricsTest, RendersWhatTheSnapshotSays) {
  Metrics::Snapshot snapshot = FullSnapshot();
  snapshot.pipeline.generated_tokens = 12345678901;
  snapshot.pipeline.interactive.running = 3;
  snapshot.pipeline.bulk.queued = 7;
  snapshot.pipeline.kv_blocks_total = 10;
  snapshot.pipeline.kv_blocks_used = 4;
  snapshot.pipeline.kv_blocks_cached = 1;
  snapshot.cluster.mutable_workers(1)->mutable_load()->set_busy_s(1.5);
  v1::ExpertLoad& experts = *snapshot.cluster.mutable_workers(1)->mutable_load()->mutable_experts();
  experts.set_hits(21);
  experts.set_misses(22);
  experts.set_reads(23);
  experts.set_read_bytes(24);
  experts.set_evictions(25);
  experts.set_guesses_used(26);
  experts.set_guesses_wasted(27);
  experts.set_waited_s(28.5);
  experts.set_guesses(29);
  experts.set_guessable(30);
  experts.set_wasted_bytes(31);
  experts.set_failovers(32);
  v1::WorkerStatus& first = *snapshot.cluster.mutable_workers(0);
  first.set_device("cpu");
  first.mutable_next()->set_neighbour("worker 2 (box-b)");
  v1::WorkerStatus& card = *snapshot.cluster.mutable_workers(1);
  card.set_device("cuda:0 (a card)");
  card.set_card_bytes(33);
  v1::CardExpertLoad& on_card = *card.mutable_load()->mutable_card_experts();
  on_card.set_hits(34);
  on_card.set_copies(35);
  on_card.set_on_cpu(36);
  on_card.set_promotions(37);
  on_card.set_copied_bytes(38);
  v1::KvArchiveLoad& archive = *card.mutable_load()->mutable_kv_archive();
  archive.set_kept(39);
  archive.set_restored_from_disk(40);
  archive.set_restored_from_peers(41);
  archive.set_replicas_sent(42);
  archive.set_replica_bytes(43);
  archive.set_replicas_dropped(44);
  const std::string text = Metrics().Render(snapshot);
  for (const char* line : {
           "caravan_generated_tokens_total 12345678901",
           "caravan_jobs{priority=\"interactive\",state=\"running\"} 3",
           "caravan_jobs{priority=\"bulk\",state=\"queued\"} 7",
           "caravan_kv_blocks{state=\"free\"} 5",
           "caravan_pipeline_serving 1",
           "caravan_foretold_tokens_per_second 2.5",
           "caravan_workers{state=\"ready\"} 2",
           "caravan_worker_busy_seconds_total{stage=\"1\",worker=\"box-b\"} 1.5",
           "caravan_worker_idle_ratio{stage=\"0\",worker=\"box-a\"} 0.25",
           "caravan_worker_expert_hits_total{stage=\"1\",worker=\"box-b\"} 21",
           "caravan_worker_expert_misses_total{stage=\"1\",worker=\"box-b\"} 22",
           "caravan_worker_expert_reads_total{stage=\"1\",worker=\"box-b\"} 23",
           "caravan_worker_expert_read_bytes_total{stage=\"1\",worker=\"box-b\"} 24",
           "caravan_worker_expert_evictions_total{stage=\"1\",worker=\"box-b\"} 25",
           "caravan_worker_expert_guesses_used_total{stage=\"1\",worker=\"box-b\"} 26",
           "caravan_worker_expert_guesses_wasted_total{stage=\"1\",worker=\"box-b\"} 27",
           "caravan_worker_expert_wait_seconds_total{stage=\"1\",worker=\"box-b\"} 28.5",
           "caravan_worker_expert_guesses_total{stage=\"1\",worker=\"box-b\"} 29",
           "caravan_worker_expert_guessable_total{stage=\"1\",worker=\"box-b\"} 30",
           "caravan_worker_expert_wasted_bytes_total{stage=\"1\",worker=\"box-b\"} 31",
           "caravan_worker_expert_failovers_total{stage=\"1\",worker=\"box-b\"} 32",
           "caravan_worker_card_bytes{stage=\"1\",worker=\"box-b\"} 33",
           "caravan_worker_card_expert_hits_total{stage=\"1\",worker=\"box-b\"} 34",
           "caravan_worker_card_expert_copies_total{stage=\"1\",worker=\"box-b\"} 35",
           "caravan_worker_card_expert_on_cpu_total{stage=\"1\",worker=\"box-b\"} 36",
           "caravan_worker_card_expert_promotions_total{stage=\"1\",worker=\"box-b\"} 37",
           "caravan_worker_card_expert_copied_bytes_total{stage=\"1\",worker=\"box-b\"} 38",
           "caravan_worker_kv_archived_blocks_total{stage=\"1\",worker=\"box-b\"} 39",
           "caravan_worker_kv_restored_from_disk_blocks_total{stage=\"1\",worker=\"box-b\"} 40",
           "caravan_worker_kv_restored_from_peers_blocks_total{stage=\"1\",worker=\"box-b\"} 41",
           "caravan_worker_kv_replicas_sent_total{stage=\"1\",worker=\"box-b\"} 42",
           "caravan_worker_kv_replica_bytes_total{stage=\"1\",worker=\"box-b\"} 43",
           "caravan_worker_kv_replicas_dropped_total{stage=\"1\",worker=\"box-b\"} 44",
           "caravan_worker_info{stage=\"0\",worker=\"box-a\",device=\"cpu\",next_hop=\"tcp\"} 1",
           "caravan_worker_info{stage=\"1\",worker=\"box-b\",device=\"cuda:0 (a card)\","
           "next_hop=\"none\"} 1",
       }) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  // All of its experts are in memory, and it has no card.
  EXPECT_THAT(text, Not(HasSubstr("expert_hits_total{stage=\"0\"")));
  EXPECT_THAT(text, Not(HasSubstr("card_bytes{stage=\"0\"")));
}

TEST(MetricsTest, SaysHowLongTheCertificateIsGoodWhereThereIsOne) {
  Metrics::Snapshot snapshot;
  EXPECT_THAT(Metrics().Render(snapshot), Not(HasSubstr("caravan_certificate")));
  snapshot.certificate_expires = absl::Hours(1);
  EXPECT_THAT(Metrics().Render(snapshot),
              HasSubstr("\ncaravan_certificate_expires_seconds 3600\n"));
  snapshot.certificate_expires = -absl::Seconds(2);
  EXPECT_THAT(Metrics().Render(snapshot), HasSubstr("\ncaravan_certificate_expires_seconds -2\n"));
}

TEST(MetricsTest, WorkersOfOneNameAreTold) {
  Metrics::Snapshot snapshot;
  for (const uint32_t id : {4u, 9u}) {
    v1::WorkerStatus& worker = *snapshot.cluster.add_workers();
    worker.set_worker_id(id);
    worker.set_name("box");
    worker.set_state(v1::WORKER_STATE_SPARE);
  }
  const std::string text = Metrics().Render(snapshot);
  EXPECT_THAT(text, HasSubstr("caravan_worker_rows_total{stage=\"spare\",worker=\"box 4\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("caravan_worker_rows_total{stage=\"spare\",worker=\"box 9\"} 0\n"));
}

TEST(MetricsTest, AWorkersNameCannotBreakTheFormat) {
  Metrics::Snapshot snapshot;
  *snapshot.cluster.add_workers() = Worker(1, "a\"} 1\nevil 2", 0, 9);
  EXPECT_THAT(Metrics().Render(snapshot), Not(HasSubstr("\nevil")));
}

}  // namespace
}  // namespace caravan
