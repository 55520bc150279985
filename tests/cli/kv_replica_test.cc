// Keys and values that outlive the box that computed them, with real processes.

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
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

constexpr int kBlockTokens = 64;

/// Workers with archives of the kind that --kv-replica says.
class KvReplicaTest : public ::testing::Test {
 protected:
  /// Three of them.
  void Start(const std::string& replica) {
    cluster_.StartCoordinator({"--workers", "3"});
    for (const char* box : {"box-0", "box-1", "box-2"}) StartBox(box, replica);
    cluster_.WaitForStatus("serving");
  }
  /// One that joins. With too little memory for any layer it is a spare.
  void StartBox(const std::string& box, const std::string& replica, bool spare = false) {
    std::vector<std::string> arguments = {"--kv-archive",     "64MiB",
                                          "--kv-archive-dir", cluster_.dir().File(box),
                                          "--kv-replica",     replica};
    if (spare) arguments.insert(arguments.end(), {"--ram", "1MiB"});
    cluster_.StartWorker(box, std::move(arguments)).WaitForErr("joined");
  }

  /// A prompt of some hundred tokens, and a reply of noise that is the same each time.
  static std::string Question() {
    std::string content;
    for (int i = 0; i < 30; ++i) absl::StrAppend(&content, "What is ", i, " + 4050? ");
    return json{{"messages", {{{"role", "user"}, {"content", content}}}},
                {"max_tokens", kSanitized ? 300 : 2000},
                {"temperature", 3.0},
                {"seed", 5},
                {"ignore_eos", true}}
        .dump();
  }
  /// Another prompt for each number, and a short reply.
  static std::string ShortQuestion(int number) {
    json question = json::parse(Question());
    question["messages"][0]["content"] = absl::StrCat(
        "Number ", number, ": ", question["messages"][0]["content"].get<std::string>());
    question["max_tokens"] = 20;
    return question.dump();
  }
  std::unique_ptr<RawHttpClient> Ask(const std::string& question = Question()) {
    auto client = std::make_unique<RawHttpClient>(cluster_.http_address());
    client->SendRequest("POST", "/v1/chat/completions", question);
    return client;
  }
  static json Answer(RawHttpClient& client) {
    const std::string answer = client.ReadAnswer();
    return json::parse(answer.substr(answer.find("\r\n\r\n")));
  }
  /// Files with so many layers from `first_layer` on in a box's archive.
  int64_t Archived(const std::string& box, int first_layer, int num_layers = 2) const {
    const std::string suffix = absl::StrCat("-", first_layer, "-", num_layers, ".kv");
    int64_t files = 0;
    std::error_code gone;
    for (std::filesystem::recursive_directory_iterator each(cluster_.dir().File(box), gone), end;
         each != end; each.increment(gone)) {
      if (absl::EndsWith(each->path().string(), suffix)) ++files;
    }
    return files;
  }
  static int64_t FullBlocks(const json& answer) {
    return (answer["usage"]["prompt_tokens"].get<int64_t>() - 1) / kBlockTokens;
  }

  /// The sum of a metric over workers whose name has `worker` in it, or of one without labels.
  int64_t Metric(const std::string& name, const std::string& worker = "") {
    RawHttpClient client(cluster_.http_address());
    client.SendRequest("GET", "/metrics");
    double sum = 0;
    const std::string answer = client.ReadAnswer();
    for (const absl::string_view line : absl::StrSplit(answer, '\n')) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(line, absl::MaxSplits(' ', 1));
      double value = 0;
      if (parts.first.substr(0, parts.first.find('{')) == name &&
          absl::StrContains(parts.first, worker) && absl::SimpleAtod(parts.second, &value)) {
        sum += value;
      }
    }
    return static_cast<int64_t>(sum);
  }

  TestCluster cluster_;
};

TEST_F(KvReplicaTest, WhatABoxKnewOutlivesIt) {
  Start("peer");
  // What an undisturbed reply is, of a cluster that keeps nothing.
  json expected;
  {
    TestCluster other;
    other.Start(1);
    RawHttpClient client(other.http_address());
    client.SendRequest("POST", "/v1/chat/completions", Question());
    expected = Answer(client);
  }
  const int64_t blocks = FullBlocks(expected);
  ASSERT_GT(blocks, 4);

  const std::unique_ptr<RawHttpClient> running = Ask();
  ASSERT_TRUE(WaitUntil([&] {
    return Metric("caravan_generated_tokens_total") > 20 && Archived("box-2", 2) >= blocks &&
           Archived("box-0", 4) >= blocks;
  })) << cluster_.Status();
  EXPECT_EQ(Metric("caravan_prefix_cache_hit_tokens_total"), 0);
  cluster_.worker("box-1").Signal(SIGKILL);  // for good
  const json answer = Answer(*running);
  EXPECT_EQ(answer["choices"], expected["choices"]);
  // All of the prompt's blocks are there when it goes on, or, where a slow machine let it end
  // first, for whoever asks again.
  const json again = Answer(*Ask());
  EXPECT_EQ(again["choices"], expected["choices"]);
  EXPECT_GE(again["usage"]["prompt_tokens_details"]["cached_tokens"], blocks * kBlockTokens);
  EXPECT_THAT(cluster_.coordinator().Err(), HasSubstr("worker_lost worker=\"worker 2 (box-1)\""));
  EXPECT_GE(Metric("caravan_prefix_cache_hit_tokens_total"), blocks * kBlockTokens);
  ASSERT_TRUE(WaitUntil([&] {
    return Metric("caravan_worker_kv_restored_from_peers_blocks_total", "box-0") >= blocks;
  })) << "the lost box's first layer came from box-2";
  EXPECT_GE(Metric("caravan_worker_kv_restored_from_disk_blocks_total", "box-2"), blocks)
      << "and its second lay there";
  EXPECT_THAT(cluster_.Status(), HasSubstr("serving (plan 2)"));
}

TEST_F(KvReplicaTest, AnotherKeepsWhatALostOneKeptAndGivesItBack) {
  constexpr int kLayers = 6;
  cluster_.StartCoordinator({"--workers", "1"});
  StartBox("box-0", "peer");
  cluster_.WaitForStatus("serving");
  const json first = Answer(*Ask(ShortQuestion(1)));
  const int64_t blocks = FullBlocks(first);
  ASSERT_GT(blocks, 4);
  EXPECT_THAT(cluster_.coordinator().Err(), HasSubstr("kv_no_replica plan=1"));
  // Who joins later keeps what was computed before.
  StartBox("box-1", "peer", /*spare=*/true);
  ASSERT_TRUE(WaitUntil([&] { return Archived("box-1", 0, kLayers) >= blocks; }))
      << cluster_.Status();
  StartBox("box-2", "peer", /*spare=*/true);
  // What is computed now still goes to the first.
  const json more = Answer(*Ask(ShortQuestion(3)));
  ASSERT_TRUE(WaitUntil([&] { return Archived("box-1", 0, kLayers) >= blocks + FullBlocks(more); }))
      << cluster_.Status();
  EXPECT_EQ(Archived("box-2", 0, kLayers), 0) << "one is enough";
  // It is lost for good: what it had, and what is new, goes to another.
  cluster_.worker("box-1").Signal(SIGKILL);
  ASSERT_TRUE(
      cluster_.coordinator().WaitForErr("kv_replica plan=1 worker=\"worker 1 (box-0)\" "
                                        "to=\"worker 3 (box-2)\""));
  const json second = Answer(*Ask(ShortQuestion(2)));
  EXPECT_LT(second["usage"]["prompt_tokens_details"]["cached_tokens"], kBlockTokens);
  ASSERT_TRUE(WaitUntil([&] {
    return Archived("box-2", 0, kLayers) >= blocks + FullBlocks(more) + FullBlocks(second);
  })) << cluster_.Status();
  EXPECT_THAT(cluster_.Status(), HasSubstr("serving (plan 1)")) << "as if nothing had happened";
  // So is the stage's own box. Who takes its place asks the one that is left.
  cluster_.worker("box-0").Signal(SIGKILL);
  StartBox("box-3", "peer");
  cluster_.WaitForStatus("serving (plan 2)");
  for (const auto& [number, before] : {std::pair(1, first), std::pair(2, second)}) {
    const json again = Answer(*Ask(ShortQuestion(number)));
    EXPECT_EQ(again["choices"], before["choices"]);
    EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"],
              FullBlocks(before) * kBlockTokens);
  }
  ASSERT_TRUE(WaitUntil([&] {
    return Metric("caravan_worker_kv_restored_from_peers_blocks_total", "box-3") >=
           blocks + FullBlocks(second);
  }));
}

TEST_F(KvReplicaTest, WhatADrainedBoxKnowsGoesWithItsLayers) {
  Start("disk");
  const json first = Answer(*Ask());
  const int64_t blocks = FullBlocks(first);
  EXPECT_EQ(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  TestProcess& drain =
      cluster_.Launch("drain", {"drain", "--coordinator", cluster_.address(), "box-1"});
  EXPECT_EQ(drain.Wait(), 0) << drain.Transcript();
  cluster_.WaitForStatus("serving; drained: worker 2 (box-1) (plan 2)");
  const json second = Answer(*Ask());
  EXPECT_EQ(second["choices"], first["choices"]);
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], blocks * kBlockTokens);
  ASSERT_TRUE(WaitUntil([&] {
    return Metric("caravan_worker_kv_restored_from_peers_blocks_total", "box-0") >= blocks &&
           Metric("caravan_worker_kv_restored_from_peers_blocks_total", "box-2") >= blocks;
  }));
  EXPECT_EQ(Metric("caravan_worker_kv_replicas_sent_total"), 0);
}

TEST_F(KvReplicaTest, WithoutAReplicaALostBoxsKvIsComputedAgain) {
  Start("disk");
  const json first = Answer(*Ask());
  cluster_.worker("box-1").Signal(SIGKILL);
  cluster_.WaitForStatus("serving (plan 2)");
  const json second = Answer(*Ask());
  EXPECT_EQ(second["choices"], first["choices"]);
  EXPECT_EQ(second["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

}  // namespace
}  // namespace caravan
