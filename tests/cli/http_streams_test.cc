// Many clients at once over HTTP, well behaved and not: every reply is the one that its question
// gets alone.

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/load_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/raw_http_client.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

struct Golden {
  std::string body;   // of the request
  std::string reply;  // transformers' greedy one
};

/// tiny-r1's golden questions, again and again.
std::vector<Golden> ReadGoldens(size_t count) {
  std::ifstream in(CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-replies.jsonl");
  std::vector<Golden> goldens;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json golden = nlohmann::json::parse(line);
    const nlohmann::json body = {
        {"messages", {{{"role", "user"}, {"content", golden["question"]}}}},
        {"temperature", 0},
        {"stream", true}};
    goldens.push_back({body.dump(), golden["reply"]});
  }
  const size_t different = goldens.size();
  for (size_t i = different; i < count; ++i) goldens.push_back(goldens[i % different]);
  goldens.resize(count);
  return goldens;
}

std::vector<std::string> Bodies(const std::vector<Golden>& goldens) {
  std::vector<std::string> bodies;
  for (const Golden& golden : goldens) bodies.push_back(golden.body);
  return bodies;
}

/// The reply as the model wrote it, with the marks of the thought.
std::string Written(const LoadReply& reply) {
  return absl::StrCat("<think>", reply.thought, "</think>", reply.answer);
}

absl::StatusOr<LoadResult> RunAtOnce(const TestCluster& cluster,
                                     const std::vector<Golden>& goldens) {
  LoadOptions options;
  options.address = cluster.http_address();
  options.concurrency = static_cast<int>(goldens.size());
  options.timeout = absl::Minutes(5);
  return RunLoad(options, Bodies(goldens));
}

void ExpectEveryReplyIsRight(const TestCluster& cluster, size_t streams) {
  const std::vector<Golden> goldens = ReadGoldens(streams);
  const absl::StatusOr<LoadResult> result = RunAtOnce(cluster, goldens);
  ASSERT_TRUE(result.ok()) << result.status();
  for (size_t i = 0; i < streams; ++i) {
    const LoadReply& reply = result->replies[i];
    ASSERT_EQ(reply.http_status, 200) << "stream " << i << ": " << reply.error;
    ASSERT_EQ(reply.finish_reason, "stop") << "stream " << i << ": " << reply.error;
    ASSERT_EQ(Written(reply), goldens[i].reply) << "stream " << i;
  }
}

TEST(HttpStreamsTest, EveryReplyOf256And1000StreamsIsTheOneOfASingleRun) {
  TestCluster cluster;
  cluster.Start(2);
  ExpectEveryReplyIsRight(cluster, kSanitized ? 32 : 256);
  ExpectEveryReplyIsRight(cluster, kSanitized ? 64 : 1000);
  cluster.WaitForStatus("no jobs\n");
}

TEST(HttpStreamsTest, AFullQueueGives429AndNothingElse) {
  TestCluster cluster;
  // A KV cache of one context lets a few run; two wait; the rest is turned away.
  cluster.Start(2, {"--max-jobs", "2", "--context", "256", "--kv-tokens", "256"});
  const std::vector<Golden> goldens = ReadGoldens(64);
  const absl::StatusOr<LoadResult> result = RunAtOnce(cluster, goldens);
  ASSERT_TRUE(result.ok()) << result.status();
  int turned_away = 0;
  for (size_t i = 0; i < goldens.size(); ++i) {
    const LoadReply& reply = result->replies[i];
    if (reply.http_status == 429) {
      ++turned_away;
      EXPECT_THAT(reply.error, ::testing::HasSubstr("the queue is full"));
      EXPECT_FALSE(reply.retry_after.empty());
      continue;
    }
    ASSERT_EQ(reply.http_status, 200) << reply.error;
    EXPECT_EQ(Written(reply), goldens[i].reply);
  }
  EXPECT_GT(turned_away, 0);
  EXPECT_LT(turned_away, 64);
}

TEST(HttpStreamsTest, BadClientsCostTheOthersNothing) {
  TestCluster cluster;
  cluster.Start(2);
  const std::string endless =
      R"({"messages": [{"role": "user", "content": "hi"}], "temperature": 2, "seed": 1,
          "ignore_eos": true, "stream": true})";
  std::vector<std::unique_ptr<RawHttpClient>> idle;
  for (int i = 0; i < (kSanitized ? 100 : 1000); ++i) {
    idle.push_back(std::make_unique<RawHttpClient>(cluster.http_address()));
  }
  std::vector<std::unique_ptr<RawHttpClient>> slow;
  for (int i = 0; i < 8; ++i) {
    // They read the beginning and then nothing.
    slow.push_back(std::make_unique<RawHttpClient>(cluster.http_address(), 2048));
    slow.back()->SendRequest("POST", "/v1/chat/completions", endless);
    slow.back()->ReadUntil("data: ");
  }
  for (int i = 0; i < 8; ++i) {
    RawHttpClient vanishing(cluster.http_address());
    vanishing.SendRequest("POST", "/v1/chat/completions", endless);
    vanishing.ReadUntil("data: ");
  }
  ExpectEveryReplyIsRight(cluster, 39);
  slow.clear();
  cluster.WaitForStatus("no jobs\n");
}

}  // namespace
}  // namespace caravan
