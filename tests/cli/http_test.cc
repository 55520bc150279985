// A coordinator's HTTP side as its users meet it: what is served when, to whom, and what a wrong
// flag gets.

#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/raw_http_client.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Get(const TestCluster& cluster, const std::string& target,
                const std::string& headers = "") {
  RawHttpClient client(cluster.http_address());
  client.SendRequest("GET", target, "", headers);
  return client.ReadAnswer();
}

std::string Post(const TestCluster& cluster, const std::string& target, const std::string& body,
                 const std::string& headers = "") {
  RawHttpClient client(cluster.http_address());
  client.SendRequest("POST", target, body, headers);
  return client.ReadAnswer();
}

constexpr char kQuestion[] =
    R"({"messages": [{"role": "user", "content": "What is 75 + 4050?"}], "temperature": 0})";

TEST(HttpTest, IsHealthyOnceAFullPipelineServes) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  cluster.StartWorker("box-0").WaitForErr("joined");
  EXPECT_THAT(Get(cluster, "/health"),
              AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("no pipeline serves")));
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion),
              AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("Retry-After")));
  cluster.StartWorker("box-1");
  cluster.WaitForStatus("serving");
  EXPECT_THAT(Get(cluster, "/health"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion),
              AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("75 + 4050 = 4125")));
}

TEST(HttpTest, ServesModelsDashboardAndMetrics) {
  TestCluster cluster;
  cluster.Start(1, {"--model-name", "r1"});
  EXPECT_THAT(Get(cluster, "/v1/models"), HasSubstr("\"id\":\"r1\""));
  EXPECT_THAT(Get(cluster, "/"), HasSubstr("<!doctype html>"));
  Post(cluster, "/v1/chat/completions", kQuestion);
  EXPECT_THAT(Get(cluster, "/metrics"),
              AllOf(HasSubstr("caravan_pipeline_serving 1\n"),
                    HasSubstr("caravan_time_to_first_token_seconds_count"
                              "{priority=\"interactive\"} 1\n"),
                    HasSubstr("caravan_jobs_total{outcome=\"finished\",priority=\"interactive\"} "
                              "1\n")));
}

TEST(HttpTest, AnArchivedPromptIsNotComputedAgainAfterAllWorkersWereKilled) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  const auto start_workers = [&cluster](const std::string& life) {
    for (const char* box : {"box-0", "box-1"}) {
      cluster
          .StartWorker(absl::StrCat(box, life),
                       {"--kv-archive", "64MiB", "--kv-archive-dir", cluster.dir().File(box)})
          .WaitForErr("joined");
    }
    // Of the second life the first worker to join serves alone at first.
    cluster.WaitForStatus([](const std::string& status) {
      return absl::StrContains(status, "serving (plan ") && absl::StrContains(status, "0..2") &&
             absl::StrContains(status, "3..5, head");
    });
  };
  start_workers("");
  std::string content;
  for (int i = 0; i < 30; ++i) absl::StrAppend(&content, "What is ", i, " + 4050? ");
  const std::string question =
      nlohmann::json({{"messages", {{{"role", "user"}, {"content", content}}}}, {"max_tokens", 40}})
          .dump();
  const auto ask = [&cluster, &question] {
    const std::string answer = Post(cluster, "/v1/chat/completions", question);
    return nlohmann::json::parse(answer.substr(answer.find("\r\n\r\n")));
  };
  const nlohmann::json first = ask();
  EXPECT_EQ(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  for (const char* box : {"box-0", "box-1"}) cluster.worker(box).Signal(SIGKILL);
  cluster.WaitForStatus("waiting for 1 more worker");
  start_workers("-again");
  const nlohmann::json second = ask();
  EXPECT_EQ(second["choices"][0]["message"], first["choices"][0]["message"]);
  const int prompt = first["usage"]["prompt_tokens"];
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], (prompt - 1) / 64 * 64);
  EXPECT_GT(prompt, 256);
}

TEST(HttpTest, CountsDrafts) {
  TestCluster cluster;
  cluster.Start(1, {"--speculate", "mtp"});
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion), HasSubstr("75 + 4050 = 4125"));
  EXPECT_THAT(Get(cluster, "/metrics"),
              AllOf(ContainsRegex("\ncaravan_draft_tokens_total [1-9][0-9]*\n"),
                    ContainsRegex("\ncaravan_draft_accepted_tokens_total [1-9][0-9]*\n"),
                    ContainsRegex("\ncaravan_speculation_active [01]\n")));
}

TEST(HttpTest, AsksForAKeyWhereThereAreKeys) {
  TestCluster cluster;
  cluster.Start(1, {"--api-key-file", cluster.dir().Write("keys", "sk-one\nsk-two\n")});
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion), StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion, "Authorization: Bearer sk-no\r\n"),
              StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(Post(cluster, "/v1/chat/completions", kQuestion, "Authorization: Bearer sk-two\r\n"),
              StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Get(cluster, "/health"), StartsWith("HTTP/1.1 200 "));
}

/// The coordinator does not start, and says why in one sentence.
void ExpectRefused(const std::vector<std::string>& arguments, const std::string& why) {
  TestCluster cluster;
  std::vector<std::string> command = {
      "coordinator", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1", "--listen", "127.0.0.1:0"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  TestProcess& coordinator = cluster.Launch("refused", std::move(command));
  EXPECT_EQ(coordinator.Wait(), 2);
  const std::string error = coordinator.Err();
  const size_t sentence = error.rfind("caravan: ");
  ASSERT_NE(sentence, std::string::npos) << error;
  EXPECT_THAT(error.substr(sentence), HasSubstr(why));
}

TEST(HttpTest, WithoutKeysNobodyElseIsServed) {
  ExpectRefused({"--http", "0.0.0.0:0"}, "needs API keys");
}

TEST(HttpTest, AMissingFileOfKeysIsNamed) {
  ExpectRefused({"--http", "127.0.0.1:0", "--api-key-file", "/no/such/keys"}, "/no/such/keys");
}

TEST(HttpTest, KeysWithoutHttpAreAMistake) {
  ExpectRefused({"--api-key-file", "/no/such/keys"}, "need --http");
}

TEST(HttpTest, APortInUseIsNamed) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  ExpectRefused({"--http", cluster.http_address()}, cluster.http_address());
}

TEST(HttpTest, AStreamEndsWithAnErrorWhenTheCoordinatorLeaves) {
  TestCluster cluster;
  cluster.Start(1);
  RawHttpClient client(cluster.http_address());
  client.SendRequest("POST", "/v1/chat/completions",
                     R"({"messages": [{"role": "user", "content": "hi"}], "temperature": 2,
                         "seed": 1, "ignore_eos": true, "stream": true})");
  client.ReadUntil("data: ");
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
  EXPECT_THAT(client.ReadToEnd(), HasSubstr("the coordinator is shutting down"));
}

}  // namespace
}  // namespace caravan
