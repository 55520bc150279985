// A cluster as OpenAI's own client for JavaScript meets it (openai_client.mjs says what is looked
// at). The package is used as it is published.

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/subprocess.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

constexpr absl::Duration kDeadline = absl::Minutes(kSanitized ? 25 : 5);

/// Runs one of the client's checks on a cluster of its own; its last words are the failure's.
void Check(const std::string& name, int num_workers,
           const std::vector<std::string>& coordinator_arguments = {}) {
  const std::string package = CARAVAN_TEST_DATA_DIR "/openai";
  ASSERT_TRUE(std::filesystem::exists(package))
      << package << " is not there: run scripts/test.sh, which installs it";
  TestCluster cluster;
  std::vector<std::string> arguments = {"--api-key-file", cluster.dir().Write("keys", "sk-one\n")};
  arguments.insert(arguments.end(), coordinator_arguments.begin(), coordinator_arguments.end());
  cluster.Start(num_workers, arguments);
  const std::string output = cluster.dir().File("output");
  Subprocess::Options options;
  options.command = {"/usr/bin/env",
                     "node",
                     CARAVAN_SOURCE_DIR "/tests/cli/openai_client.mjs",
                     package,
                     CARAVAN_SOURCE_DIR "/tests/data/goldens",
                     name,
                     absl::StrCat("http://", cluster.http_address())};
  options.stdout_path = output;
  options.stderr_path = output;
  absl::StatusOr<Subprocess> process = Subprocess::Start(options);
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ(process->Wait(kDeadline), 0) << ReadFile(output, 1 << 20).value_or("");
}

TEST(OpenAiClientTest, ChatsWholeAndInAStream) { Check("chat", 2); }

TEST(OpenAiClientTest, GetsSeveralChoicesWithLogprobs) { Check("choices", 1); }

TEST(OpenAiClientTest, CompletesTextsWithLogprobs) { Check("completions", 2); }

TEST(OpenAiClientTest, ScoresPromptsAsTransformersDoes) { Check("echo", 2); }

TEST(OpenAiClientTest, AnswersFourWayQuestionsAsTransformersDoes) { Check("fourWayQuestions", 1); }

TEST(OpenAiClientTest, ListsModels) { Check("models", 1); }

TEST(OpenAiClientTest, ThrowsItsTypedErrors) { Check("errors", 1); }

TEST(OpenAiClientTest, IsToldToComeBackWhenTheQueueIsFull) {
  Check("queue", 1, {"--kv-tokens", "4096"});
}

TEST(OpenAiClientTest, AbortsInMidStream) { Check("abort", 1); }

TEST(OpenAiClientTest, KeepsFiles) { Check("files", 1); }

TEST(OpenAiClientTest, RunsBatches) { Check("batches", 2); }

}  // namespace
}  // namespace caravan
