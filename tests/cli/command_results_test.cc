// What commands find that need no cluster: predictions, probes, a model's logits and answers.

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli/command_testing.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

TEST(CommandResultsTest, SimulatesJobsOnBoxesThatAreNotThere) {
  TestCluster cluster;
  const std::string boxes = cluster.dir().Write(
      "boxes.json", R"({"boxes": [{"box": "3060", "count": 2}], "network": "1gbe"})");
  const auto simulate = [&](const std::string& rate) -> TestProcess& {
    TestProcess& process = cluster.Launch(
        "simulate", {"simulate", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1", "--boxes", boxes,
                     "--rate", rate, "--hours", "2", "--context", "512", "--prompt", "64",
                     "--reply", "64", "--prefill-chunk", "128"});
    EXPECT_EQ(process.Wait(), 0) << process.Transcript();
    return process;
  };
  const std::string first = simulate("3600").Out();
  EXPECT_THAT(first, ContainsRegex("\n\\| 7[0-9]{3} \\| 7[0-9]{3} \\| [0-9]+ \\| [0-9.]+ \\| "));
  EXPECT_THAT(first, ContainsRegex("\n\\| 1 \\| 3060 \\| layers 0\\.\\."));
  EXPECT_EQ(simulate("3600").Out(), first) << "the seed is the same";
  EXPECT_NE(simulate("1800").Out(), first);
}

TEST(CommandResultsTest, PlanPredictsForAShapeThatIsNotHere) {
  TestCluster cluster;
  const std::string shape = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
  TestProcess& plan =
      cluster.Launch("plan", {"plan", "--model", shape, "--experts", "q4_K", "--dense", "q4_K",
                              "--count", "1,12", "--jobs", "1,256", "--target", "15"});
  EXPECT_EQ(plan.Wait(), 0) << plan.Transcript();
  EXPECT_THAT(plan.Out(), HasSubstr("a prediction, not a measurement"));
  // One box has not the memory for the KV cache of 256 jobs; of twelve it takes experts' place.
  EXPECT_THAT(plan.Out(), ContainsRegex("\\| 1 \\| [0-9]+% \\| 0\\.[0-9]+ disk \\| - \\|"));
  EXPECT_THAT(plan.Out(),
              ContainsRegex("\\| 12 \\| [0-9]+% to [0-9]+% \\| [0-9.]+ [a-z]+ \\| \\*\\*"));
  EXPECT_THAT(plan.Out(), ContainsRegex("stage 1 \\(layers 0..60, box 3060\\) lacks [0-9.]+ GiB of "
                                        "memory"));
}

TEST(CommandResultsTest, PlanTakesBoxesFromAFileAndWritesAPage) {
  TestCluster cluster;
  const std::string shape = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
  const std::string boxes = cluster.dir().File("boxes.json");
  WriteText(boxes,
            R"({"boxes": [{"box": "3060", "count": 2}, {"box": "cpu"}], "network": "1gbe"})");
  const std::string page = cluster.dir().File("page.html");
  TestProcess& plan =
      cluster.Launch("plan", {"plan", "--model", shape, "--bits", "4.5", "--boxes", boxes, "--jobs",
                              "8", "--context", "4096", "--for", "interactive", "--html", page});
  EXPECT_EQ(plan.Wait(), 0) << plan.Transcript();
  EXPECT_THAT(plan.Out(), HasSubstr("boxes.json: 2 boxes 3060, 1 box cpu"));
  EXPECT_THAT(plan.Out(), HasSubstr("| another box 3060 | 4650 | "));
  EXPECT_THAT(Slurp(page), HasSubstr("<h2>What to buy next</h2>"));
}

TEST(CommandResultsTest, ProbeDiskMeasuresEachSizeAtEachDepthAndLeavesNothing) {
  TestCluster cluster;
  const std::string directory = cluster.dir().File("disk");
  std::filesystem::create_directory(directory);
  std::vector<std::string> arguments = {"probe", "disk",      directory, "--size",
                                        "64MiB", "--seconds", "0.01"};
  TestProcess& table = cluster.Launch("table", arguments);
  EXPECT_EQ(table.Wait(), 0) << table.Transcript();
  EXPECT_THAT(table.Out(), HasSubstr("\n24 MiB "));
  EXPECT_THAT(table.Out(), ContainsRegex("\\* the best: [0-9.]+ GB/s with"));
  arguments.push_back("--json");
  TestProcess& line = cluster.Launch("json", arguments);
  EXPECT_EQ(line.Wait(), 0) << line.Transcript();
  const nlohmann::json probe = nlohmann::json::parse(line.Out());
  EXPECT_EQ(probe["points"].size(), 24u);
  EXPECT_GT(probe["best"]["gb_per_s"], 0);
  EXPECT_EQ(probe["file_bytes"], 64 << 20);
  EXPECT_TRUE(std::filesystem::is_empty(directory));
}

TEST(CommandResultsTest, ProbeDiskStopsAtASignalAndLeavesNothing) {
  TestCluster cluster;
  const std::string directory = cluster.dir().File("disk");
  std::filesystem::create_directory(directory);
  TestProcess& probe =
      cluster.Launch("probe", {"probe", "disk", directory, "--size", "64MiB", "--seconds", "60"});
  probe.WaitForErr("writing a scratch file");
  probe.Signal(SIGINT);
  EXPECT_EQ(probe.Wait(), 130) << probe.Transcript();
  EXPECT_THAT(probe.Err(), HasSubstr("caravan: measuring was stopped"));
  EXPECT_TRUE(std::filesystem::is_empty(directory));
}

TEST(CommandResultsTest, VerifyTellsEqualFromDifferent) {
  TestCluster cluster;
  const std::vector<std::string> verify = {"verify", "--model", absl::StrCat(kGoldens, "v3-like"),
                                           "--golden",
                                           absl::StrCat(kGoldens, "v3-like/golden.safetensors")};
  std::vector<std::string> arguments = verify;
  arguments.insert(arguments.end(), {"--workers", "2", "--chunk", "7"});
  TestProcess& equal = cluster.Launch("verify", arguments);
  EXPECT_EQ(equal.Wait(), 0) << equal.Transcript();
  EXPECT_THAT(equal.Out(), HasSubstr("equal: 3 lists"));
  arguments = verify;
  arguments.insert(arguments.end(), {"--tolerance", "1e-12"});
  TestProcess& different = cluster.Launch("verify", arguments);
  EXPECT_EQ(different.Wait(), 1) << different.Transcript();
  EXPECT_THAT(different.Out(), HasSubstr("ABOVE TOLERANCE"));
}

TEST(CommandResultsTest, VerifyKnowsTheFormatsOfTheKvCache) {
  TestCluster cluster;
  // At most a layer's rounding each, 2^-11: tests/cli/golden_pipeline_test.cc derives it.
  TestProcess& f16 =
      cluster.Launch("verify", {"verify", "--model", kModel, "--golden",
                                absl::StrCat(kGoldens, "tiny-r1-golden.safetensors"), "--kv", "f16",
                                "--tolerance", absl::StrCat(6 * 0x1p-11)});
  EXPECT_EQ(f16.Wait(), 0) << f16.Transcript();
  ExpectRefusal(cluster, {{"verify", "--model", absl::StrCat(kGoldens, "v3-like"), "--golden",
                           absl::StrCat(kGoldens, "v3-like/golden.safetensors"), "--kv", "q8_0"},
                          2,
                          "a KV cache of Q8_0 needs qk_rope_head_dim to be a multiple of 32"});
}

TEST(CommandResultsTest, VerifyComputesWithThePlainestInstructions) {
  TestCluster cluster;
  TestProcess& portable = cluster.Launch(
      "verify", {"verify", "--model", absl::StrCat(kGoldens, "v3-like"), "--golden",
                 absl::StrCat(kGoldens, "v3-like/golden.safetensors"), "--isa", "portable"});
  EXPECT_EQ(portable.Wait(), 0) << portable.Transcript();
}

TEST(CommandResultsTest, TinyR1SolvesItsTasks) {
  TestCluster cluster;
  // All of them in a few seconds; under a sanitizer every tenth of each kind is enough to watch.
  const int stride = kSanitized ? 10 : 1;
  std::string tasks;
  int number = 0;
  for (absl::string_view line :
       absl::StrSplit(Slurp(absl::StrCat(kGoldens, "tiny-r1-tasks.jsonl")), '\n')) {
    if (number++ % stride == 0) absl::StrAppend(&tasks, line, "\n");
  }
  const std::string path = cluster.dir().File("tasks.jsonl");
  WriteText(path, tasks);
  // With drafts, which change nothing.
  TestProcess& eval = cluster.Launch(
      "eval", {"eval", "--model", kModel, "--tasks", path, "--workers", "2", "--speculate", "mtp"});
  EXPECT_EQ(eval.Wait(), 0) << eval.Transcript();
  int right = 0;
  int total = 0;
  for (absl::string_view line : absl::StrSplit(eval.Out(), '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() != 5 || words[2] != "/" || words[0] == "all" || words[0] == "zh_day") continue;
    right += std::stoi(words[1]);
    total += std::stoi(words[3]);
  }
  EXPECT_EQ(total, 480 / stride);  // of 520, without zh_day's 40
  EXPECT_GE(right, 0.95 * total) << eval.Out();
  EXPECT_THAT(eval.Out(), ContainsRegex("\ndrafts accepted: [1-9][0-9]* of [0-9]+\n"));
}

}  // namespace
}  // namespace caravan
