// A coordinator that is killed, again and again, and what becomes of its batches.

#include <csignal>
#include <iostream>
#include <map>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/raw_http_client.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int kKills = kSanitized ? 6 : 50;
constexpr int kLines = kSanitized ? 12 : 64;

/// Sums of all kinds: greedy, sampled, of several choices, with scores, with an end by a stop
/// string, and one in eight that is none.
std::string MakeLines(std::mt19937_64& random) {
  std::string lines;
  for (int i = 0; i < kLines; ++i) {
    const uint64_t a = random() % 900 + 100;
    const uint64_t b = random() % 9000;
    json body = {
        {"messages", {{{"role", "user"}, {"content", absl::StrCat("What is ", a, " + ", b, "?")}}}},
        {"max_tokens", 200},
        {"temperature", 0}};
    switch (i % 8) {
      case 0:
        break;
      case 1:
        body.update({{"temperature", 1.0}, {"seed", random()}});
        break;
      case 2:
        body.update({{"logprobs", true}, {"top_logprobs", 3}});
        break;
      case 3:
        body.update({{"n", 2}, {"temperature", 0.8}, {"seed", random()}, {"logprobs", true}});
        break;
      case 4:
        // Noise, which goes on to its limit.
        body.update({{"temperature", 50.0}, {"seed", random()}, {"ignore_eos", true}});
        break;
      case 5:
        body.update({{"stop", {"="}}});
        break;
      case 6:
        body.update({{"frequency_penalty", 0.5}, {"temperature", 1.2}, {"seed", random()}});
        break;
      case 7:
        body.update({{"n", 0}});
        break;
    }
    absl::StrAppend(&lines,
                    json{{"custom_id", absl::StrCat("line-", i)},
                         {"method", "POST"},
                         {"url", "/v1/chat/completions"},
                         {"body", body}}
                        .dump(),
                    "\n");
  }
  return lines;
}

/// What the lines of `caravan submit --wait` came to, by custom_id, each exactly once. Without what
/// another run has otherwise: ids, the time, what the KV cache held.
std::map<std::string, json> ReadReplies(const TestProcess& submit, const std::string& output) {
  std::map<std::string, json> replies;
  const std::string text = Slurp(output) + submit.Err();
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    if (line[0] != '{') continue;
    const json result = json::parse(line);
    json reply = result["response"];
    EXPECT_TRUE(result["error"].is_null()) << result;
    reply.erase("request_id");
    json& body = reply["body"];
    body.erase("id");
    body.erase("created");
    if (body.contains("usage")) body["usage"].erase("prompt_tokens_details");
    EXPECT_TRUE(replies.emplace(result["custom_id"], reply).second) << result["custom_id"];
  }
  return replies;
}

class RestartTest : public ::testing::Test {
 protected:
  void StartCoordinator(const std::string& listen) {
    cluster_.StartCoordinator(
        {"--workers", "2", "--listen", listen, "--state", cluster_.dir().File("caravan.db")});
  }
  void StartCluster() {
    StartCoordinator("127.0.0.1:0");
    cluster_.StartWorker("box-0", {"--connect-timeout", "120"});
    cluster_.StartWorker("box-1", {"--connect-timeout", "120"});
  }
  TestProcess& Submit(const std::string& lines, const std::string& output) {
    return cluster_.Launch("submit", {"submit", lines, "--coordinator", cluster_.address(),
                                      "--connect-timeout", "120", "--wait", "--output", output});
  }
  /// Tokens that the coordinator of now has generated, from /metrics.
  int64_t GeneratedTokens() {
    const std::string name = "\ncaravan_generated_tokens_total ";
    RawHttpClient client(cluster_.http_address());
    client.SendRequest("GET", "/metrics");
    const std::string metrics = client.ReadAnswer();
    const size_t at = metrics.find(name);
    double tokens = 0;
    EXPECT_TRUE(
        at != std::string::npos &&
        absl::SimpleAtod(absl::string_view(metrics).substr(
                             at + name.size(), metrics.find('\n', at + 1) - at - name.size()),
                         &tokens))
        << metrics;
    return static_cast<int64_t>(tokens);
  }
  bool Serves() {
    RawHttpClient client(cluster_.http_address());
    client.SendRequest("GET", "/health");
    return client.ReadAnswer().find(" 200 ") != std::string::npos;
  }
  void KillCoordinator() {
    cluster_.coordinator().Signal(SIGKILL);
    EXPECT_EQ(cluster_.coordinator().Wait(), 128 + SIGKILL);
  }

  TestCluster cluster_;
};

TEST_F(RestartTest, ABatchSurvivesKillsAtRandomMoments) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << std::endl;
  std::mt19937_64 random(seed);
  StartCluster();
  const std::string lines = cluster_.dir().Write("lines.jsonl", MakeLines(random));

  const std::string undisturbed = cluster_.dir().File("undisturbed.jsonl");
  TestProcess& reference = Submit(lines, undisturbed);
  EXPECT_EQ(reference.Wait(), 1) << reference.Err();  // for the lines that cannot be run
  const std::map<std::string, json> expected = ReadReplies(reference, undisturbed);
  ASSERT_THAT(expected, SizeIs(kLines)) << reference.Err();

  const std::string output = cluster_.dir().File("output.jsonl");
  TestProcess& submit = Submit(lines, output);
  ASSERT_TRUE(submit.WaitForErr("batch_"));
  int64_t generated = -GeneratedTokens();  // those of the undisturbed run
  for (int kill = 0; kill < kKills; ++kill) {
    // As soon as it listens, as soon as it serves, or any number of tokens later.
    const uint64_t moment = random() % 8;
    if (moment >= 1) {
      ASSERT_TRUE(WaitUntil([&] { return Serves(); }));
    }
    if (moment >= 2) {
      const int64_t tokens = GeneratedTokens() + static_cast<int64_t>(random() % 128);
      ASSERT_TRUE(WaitUntil([&] { return GeneratedTokens() > tokens || submit.Ended(); }));
    }
    ASSERT_FALSE(submit.Ended()) << "the batch ended before kill " << kill;
    generated += GeneratedTokens();
    KillCoordinator();
    StartCoordinator(cluster_.address());
    ASSERT_FALSE(HasFailure());
  }
  std::cout << kKills << " kills, " << generated << " tokens between them" << std::endl;
  EXPECT_EQ(submit.Wait(), 1) << submit.Err();
  const std::map<std::string, json> replies = ReadReplies(submit, output);
  for (const auto& [custom_id, reply] : expected) {
    const auto it = replies.find(custom_id);
    ASSERT_NE(it, replies.end()) << custom_id;
    EXPECT_EQ(it->second, reply) << custom_id;
  }
  EXPECT_THAT(replies, SizeIs(kLines));
}

TEST_F(RestartTest, ACoordinatorThatLeavesTakesItsBatchesUpAgain) {
  std::mt19937_64 random(1);
  StartCluster();
  const std::string output = cluster_.dir().File("output.jsonl");
  TestProcess& submit = Submit(cluster_.dir().Write("lines.jsonl", MakeLines(random)), output);
  ASSERT_TRUE(WaitUntil([&] { return GeneratedTokens() > 50; }));
  cluster_.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster_.coordinator().Wait(), 0);
  StartCoordinator(cluster_.address());
  EXPECT_EQ(submit.Wait(), 1) << submit.Err();
  EXPECT_THAT(ReadReplies(submit, output), SizeIs(kLines));
}

TEST_F(RestartTest, ASecondCoordinatorOfTheSameStateIsRefused) {
  StartCoordinator("127.0.0.1:0");
  const std::string state = cluster_.dir().File("caravan.db");
  TestProcess& second =
      cluster_.Launch("second", {"coordinator", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1",
                                 "--listen", "127.0.0.1:0", "--state", state});
  EXPECT_EQ(second.Wait(), 2);
  EXPECT_THAT(second.Err(), HasSubstr(absl::StrCat("--state: ", state, ": another process")));
}

}  // namespace
}  // namespace caravan
