// The dashboard in a real browser (tests/coordinator/dashboard_page.mjs says what is looked at), on
// a real HTTP server. Behind it the driver has no pipeline, and chat is a script.

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/subprocess.h"
#include "coordinator/dashboard_service.h"
#include "coordinator/http/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/sanitized.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

constexpr absl::Duration kDeadline = absl::Minutes(kSanitized ? 10 : 2);

PipelineDriver::Options DriverOptions() {
  PipelineDriver::Options options;
  options.vocab_size = 100;
  options.context_tokens = 1000;
  options.pipeline_timeout = absl::InfiniteDuration();
  return options;
}

std::string Chunk(const char* field, const std::string& text) {
  const nlohmann::json chunk = {{"choices", {{{"index", 0}, {"delta", {{field, text}}}}}}};
  return absl::StrCat("data: ", chunk.dump(), "\n\n");
}

class DashboardPageTest : public ::testing::Test {
 protected:
  DashboardPageTest() : driver_(DriverOptions()), history_(HistoryOptions()) {
    DashboardService::Options options;
    options.model = "tiny-r1";
    options.driver = &driver_;
    options.history = &history_;
    options.metrics = &metrics_;
    options.clock = &clock_;
    options.cancel = [this](uint64_t id) { return driver_.Cancel(id); };
    service_ = std::make_unique<DashboardService>(options);
  }
  ~DashboardPageTest() override {
    if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
    driver_.Shutdown();
  }

  LoadHistory::Options HistoryOptions() {
    LoadHistory::Options options;
    options.clock = &clock_;
    return options;
  }

  void StartServer(std::optional<ApiKeys> keys = std::nullopt) {
    Router router;
    service_->AddRoutes(router);
    router.Handle("GET", "/v1/models",
                  [](const HttpRequest& /*request*/, const std::shared_ptr<Responder>& responder) {
                    responder->Send({200, "application/json", R"({"data": [{"id": "tiny-r1"}]})"});
                  });
    router.Handle("POST", "/v1/chat/completions",
                  [this](const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
                    Chat(request, responder);
                  });
    HttpServer::Options options;
    options.listen = "127.0.0.1:0";
    options.keys = std::move(keys);
    absl::StatusOr<std::unique_ptr<HttpServer>> server =
        HttpServer::Start(std::move(options), std::move(router));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  /// A thought and an answer; whoever asks to "go on" gets no end.
  void Chat(const HttpRequest& request, const std::shared_ptr<Responder>& responder) {
    responder->SetEvents([this] { ++readers_gone_; }, [] {});
    responder->StartStream({200, "text/event-stream", ""});
    responder->Write(Chunk("reasoning_content", "\nSeven and "));
    responder->Write(Chunk("reasoning_content", "eight."));
    if (absl::StrContains(request.body, "go on")) {
      endless_.push_back(responder);
      return;
    }
    responder->Write(Chunk("content", "\n\nIt is "));
    responder->Write(Chunk("content", "15 <b>."));
    responder->Write("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    responder->Write("data: {\"choices\":[],\"usage\":{\"completion_tokens\":4}}\n\n");
    responder->Write("data: [DONE]\n\n");
    responder->Finish();
  }

  /// Two boxes that serve, one with a card and one with experts on its disk, one that is spare, and
  /// some minutes of load.
  void FillCluster() {
    v1::GetStatusResponse cluster;
    cluster.set_serving(true);
    cluster.set_pipeline_state("serving");
    for (uint32_t id = 1; id <= 3; ++id) {
      v1::WorkerStatus& worker = *cluster.add_workers();
      worker.set_worker_id(id);
      worker.set_name(id == 3 ? "box-spare-with-a-name-that-is-far-too-long-for-a-phone"
                              : absl::StrCat("box-", id));
      worker.set_address(absl::StrCat("10.0.0.", id, ":7070"));
      worker.set_device("cpu");
      worker.set_memory_budget_bytes(uint64_t{16} << 30);
      worker.set_state(v1::WORKER_STATE_SPARE);
      if (id == 3) break;
      worker.set_state(v1::WORKER_STATE_READY);
      worker.mutable_stage()->set_first_layer(5 * (id - 1));
      worker.mutable_stage()->set_end_layer(5 * id);
      worker.mutable_stage()->set_embeds(id == 1);
      worker.mutable_stage()->set_has_head(id == 2);
      worker.set_stage_bytes(uint64_t{8} << 30);
      worker.set_loaded_bytes(uint64_t{8} << 30);
      worker.set_kv_blocks(100);
      worker.set_kv_bytes(uint64_t{2} << 30);
      worker.set_experts(100);
      worker.set_expert_slots(25);
      if (id == 1) {
        worker.set_device("cuda:0 (NVIDIA GeForce RTX 3060)");
        worker.set_on_card(true);
        worker.set_card_bytes(uint64_t{21} << 29);
        worker.mutable_next()->set_neighbour("worker 2 (box-2)");
        worker.mutable_next()->set_by_nccl(true);
        worker.mutable_next()->set_why("both have NCCL 2.28.9");
        v1::CardExpertLoad& load = *worker.mutable_load()->mutable_card_experts();
        load.set_hits(60);
        load.set_copies(15);
        load.set_on_cpu(25);
        load.set_promotions(7);
        load.set_copied_bytes(uint64_t{3} << 30);
        continue;
      }
      worker.mutable_load()->mutable_experts()->set_hits(3);
      worker.mutable_load()->mutable_experts()->set_misses(1);
    }
    PipelineStats stats;
    for (int sample = 0; sample < 20; ++sample) {
      stats.generated_tokens += 10 * sample + 1;
      history_.OnFirstToken(JobPriority::kInteractive, absl::Milliseconds(100 + sample));
      for (v1::WorkerStatus& worker : *cluster.mutable_workers()) {
        worker.mutable_load()->set_busy_s(1.5 * sample);
        worker.mutable_load()->set_total_s(worker.has_stage() ? 2.0 * sample : 0);
      }
      history_.Take(stats, cluster);
      service_->Update(cluster);  // no sample is due: one was taken at this very time
      clock_.Advance(absl::Seconds(2));
    }
  }

  std::unique_ptr<JobHandle> SubmitJob() {
    JobSpec spec;
    spec.prompt = {1, 2, 3};
    spec.max_new_tokens = 10;
    absl::StatusOr<std::unique_ptr<JobHandle>> job = driver_.Submit(std::move(spec));
    EXPECT_TRUE(job.ok()) << job.status();
    return *std::move(job);
  }

  /// Runs one of the page's checks; its last words are the failure's.
  void Check(const std::string& name) {
    const std::string playwright = CARAVAN_TEST_DATA_DIR "/playwright-core";
    ASSERT_TRUE(std::filesystem::exists(playwright))
        << playwright << " is not there: run scripts/test.sh, which installs it";
    const std::string output = dir_.File("output");
    Subprocess::Options options;
    options.command = {
        "/usr/bin/env", "node", CARAVAN_SOURCE_DIR "/tests/coordinator/dashboard_page.mjs",
        playwright,     name,   absl::StrCat("http://", server_->address(), "/")};
    options.stdout_path = output;
    options.stderr_path = output;
    absl::StatusOr<Subprocess> process = Subprocess::Start(options);
    ASSERT_TRUE(process.ok()) << process.status();
    EXPECT_EQ(process->Wait(kDeadline), 0) << ReadFile(output, 1 << 20).value_or("");
  }

  TempDir dir_;
  SimulatedClock clock_;
  PipelineDriver driver_;
  Metrics metrics_;
  LoadHistory history_;
  std::unique_ptr<DashboardService> service_;
  std::atomic<int> readers_gone_{0};
  std::vector<std::shared_ptr<Responder>> endless_;  // by one connection at a time
  std::unique_ptr<HttpServer> server_;
};

TEST_F(DashboardPageTest, ShowsTheBoxesAndTheLoad) {
  FillCluster();
  StartServer();
  Check("boxes");
}

TEST_F(DashboardPageTest, SaysWhatItWaitsFor) {
  v1::GetStatusResponse cluster;
  cluster.set_pipeline_state("waiting for 2 more workers to join");
  service_->Update(cluster);
  StartServer();
  Check("empty");
}

TEST_F(DashboardPageTest, StreamsThoughtAndAnswer) {
  StartServer();
  Check("chat");
}

TEST_F(DashboardPageTest, StopEndsTheStream) {
  StartServer();
  Check("stop");
  server_->Stop(absl::Seconds(10));
  EXPECT_EQ(readers_gone_, 1);
}

TEST_F(DashboardPageTest, CancelEndsTheJob) {
  const std::unique_ptr<JobHandle> first = SubmitJob();
  const std::unique_ptr<JobHandle> second = SubmitJob();
  StartServer();
  Check("cancel");
  EXPECT_EQ(first->Next(absl::ZeroDuration()).status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(second->Next(absl::ZeroDuration()).ok());
}

TEST_F(DashboardPageTest, FitsAPhone) {
  const std::unique_ptr<JobHandle> job = SubmitJob();
  FillCluster();
  StartServer();
  Check("phone");
}

TEST_F(DashboardPageTest, FollowsTheColorScheme) {
  FillCluster();
  StartServer();
  Check("dark");
}

TEST_F(DashboardPageTest, WorksWithTheKeyboardAlone) {
  FillCluster();
  StartServer();
  Check("keyboard");
}

TEST_F(DashboardPageTest, SaysThatTheCoordinatorIsLostAndComesBack) {
  FillCluster();
  StartServer();
  Check("lost");
}

TEST_F(DashboardPageTest, AsksForAKeyWhereOneIsNeeded) {
  absl::StatusOr<ApiKeys> keys = ApiKeys::Load(dir_.Write("keys", "open-sesame\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  StartServer(*std::move(keys));
  Check("key");
}

}  // namespace
}  // namespace caravan
