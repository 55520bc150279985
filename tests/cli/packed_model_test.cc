// The commands that make packed models, and what runs on their work.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/peak_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli/synth_pack.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

const char kConfig[] = CARAVAN_SOURCE_DIR "/tests/data/goldens/v3-like/config.json";

TEST(PackedModelTest, ASyntheticModelIsBenchmarkedButHasNoText) {
  TestCluster cluster;
  const std::string out = cluster.dir().File("synthetic");
  // With this seed the reply does not end at once.
  TestProcess& synth = cluster.Launch(
      "synth", {"synth", "--config", kConfig, "--out", out, "--layers", "2", "--experts", "q8_0",
                "--dense", "q4_0", "--threads", "2", "--seed", "1"});
  ASSERT_EQ(synth.Wait(), 0) << synth.Transcript();
  EXPECT_THAT(synth.Out(), HasSubstr("routed experts"));
  EXPECT_THAT(Slurp(out + "/config.json"), HasSubstr("\"num_hidden_layers\": 2"));
  TestProcess& bench =
      cluster.Launch("bench", {"bench", "--model", out, "--workers", "2", "--rounds", "1",
                               "--max-tokens", "64", "--prompt", "hi"});
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), AllOf(HasSubstr("| 1 |"), HasSubstr("| 2 |")));
  TestProcess& coordinator = cluster.Launch("coordinator", {"coordinator", "--model", out});
  EXPECT_EQ(coordinator.Wait(), 2) << coordinator.Transcript();
  EXPECT_THAT(coordinator.Err(), AllOf(HasSubstr(out), HasSubstr("without a tokenizer")));
  TestProcess& again = cluster.Launch("again", {"synth", "--config", kConfig, "--out", out});
  EXPECT_EQ(again.Wait(), 1) << again.Transcript();
  EXPECT_THAT(again.Err(), HasSubstr("holds a packed model already"));
  TestProcess& wrong =
      cluster.Launch("wrong", {"synth", "--config", "/nowhere/config.json", "--out", out + "2"});
  EXPECT_EQ(wrong.Wait(), 2) << wrong.Transcript();
  EXPECT_THAT(wrong.Err(), HasSubstr("/nowhere/config.json"));
  EXPECT_FALSE(FileExists(out + "2"));
}

/// A packed model with 128 experts of 0.8 MiB in each layer but the first.
std::string MakeModelOfManyExperts(TestCluster& cluster, int layers = 2) {
  nlohmann::json config = nlohmann::json::parse(Slurp(kConfig));
  config["vocab_size"] = 2048;  // tiny-r1's
  config["hidden_size"] = 256;
  config["moe_intermediate_size"] = 1024;
  config["n_routed_experts"] = 128;
  config["num_hidden_layers"] = layers;
  return MakeSynthPack(cluster, config);
}

TEST(PackedModelTest, AWorkerWithoutThePackIsGivenNoExpertsToLeaveThere) {
  TestCluster cluster;
  const std::string pack = MakeModelOfManyExperts(cluster);
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"}, pack);
  // The coordinator has it open; nobody else finds it.
  std::filesystem::rename(pack, pack + ".moved");
  cluster.StartWorker("box", {"--ram", "90MiB"});
  cluster.WaitForStatus(
      "left out: worker box: its experts do not fit in memory, and no local copy of the pack is "
      "here: give --model or --model-cache DIRECTORY, or --ram of at least 10");
  EXPECT_THAT(cluster.Status(),
              AllOf(HasSubstr("but the worker offers 90.0 MiB"), HasSubstr("spare")));
  // Together with another its part fits its memory.
  cluster.StartWorker("more", {"--ram", "200MiB"});
  cluster.WaitForStatus("serving; not offloading: worker box: ");
}

TEST(PackedModelTest, AWorkerRefusesMirrorsThatAreNoneAtItsStart) {
  TestCluster cluster;
  const std::string pack = MakeModelOfManyExperts(cluster);
  const std::string empty = cluster.dir().File("empty");
  std::filesystem::create_directory(empty);
  const std::string tiny = CARAVAN_SOURCE_DIR "/models/tiny-r1";
  using Case = std::pair<std::vector<std::string>, std::string>;
  for (const auto& [flags, says] :
       {Case{{"--model", pack, "--mirror", pack + "/."},
             absl::StrCat("--mirror: ", pack, "/.: a mirror must be another directory")},
        Case{{"--model", pack, "--mirror", empty},
             absl::StrCat("--mirror: ", empty, ": a mirror must hold the pack's manifest")},
        Case{{"--model", tiny, "--mirror", pack}, absl::StrCat("--mirror: ", tiny)}}) {
    std::vector<std::string> command = {"worker", "--coordinator", "127.0.0.1:1"};
    command.insert(command.end(), flags.begin(), flags.end());
    TestProcess& worker = cluster.Launch("refused", command);
    EXPECT_EQ(worker.Wait(), 2) << worker.Transcript();
    EXPECT_THAT(worker.Err(), HasSubstr(says)) << worker.Transcript();
  }
}

TEST(PackedModelTest, AWorkerMeasuresTheDrivesOfItsMirrorsToo) {
  TestCluster cluster;
  const std::string pack = MakeModelOfManyExperts(cluster);
  const std::string mirror = cluster.dir().File("mirror");
  std::filesystem::copy(pack, mirror, std::filesystem::copy_options::recursive);
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"}, pack);
  const std::string file = cluster.dir().File("box.json");
  const std::vector<std::string> alone = {"--model", pack, "--box", file};
  std::vector<std::string> mirrored = alone;
  mirrored.insert(mirrored.end(), {"--mirror", mirror});
  const auto start = [&](const std::vector<std::string>& flags) {
    TestProcess& worker = cluster.StartWorker("box", flags);
    EXPECT_TRUE(worker.WaitForErr("joined"));
    worker.Signal(SIGTERM);
    EXPECT_EQ(worker.Wait(), 0) << worker.Transcript();
    return worker.Err();
  };
  EXPECT_THAT(start(mirrored), HasSubstr("measuring_box"));
  EXPECT_EQ(nlohmann::json::parse(Slurp(file)).at("disk").at("drives"), 2);
  EXPECT_THAT(start(mirrored),
              AllOf(Not(HasSubstr("measuring_box")), Not(HasSubstr("box_has_other_drives"))));
  EXPECT_THAT(start(alone), HasSubstr("box_has_other_drives"));
}

TEST(PackedModelTest, AWorkerWhoseExpertsDoNotFitKeepsToItsBudgetAsAWhole) {
  TestCluster cluster;
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"},
                           MakeModelOfManyExperts(cluster));
  TestProcess& worker = cluster.StartWorker("box", {"--ram", "90MiB"});
  cluster.WaitForStatus("serving");
  EXPECT_THAT(cluster.Status(), ContainsRegex("ready .* of 128 experts\n"));
  for (int i = 0; i < 4; ++i) {
    TestProcess& run = cluster.StartRun(
        absl::StrCat(std::string(static_cast<size_t>(i), 'x'), "What is 487 + 358?"),
        {"--max-tokens", "64", "--temperature", "1", "--seed", absl::StrCat(i)});
    EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  }
  const int64_t peak = PeakMemory(worker.pid());
  EXPECT_GT(peak, 0);
  EXPECT_TRUE(kSanitized || peak <= (int64_t{90} << 20) * 102 / 100) << peak;
}

TEST(PackedModelTest, SlotsOutliveTheirPlansWithinTheBudget) {
  TestCluster cluster;
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"},
                           MakeModelOfManyExperts(cluster, /*layers=*/4));
  TestProcess& box = cluster.StartWorker("box", {"--ram", "90MiB"});
  cluster.WaitForStatus("serving");
  EXPECT_THAT(cluster.Status(), ContainsRegex("ready .* of 384 experts\n"));
  const std::vector<std::string> length = {"--max-tokens", "200"};
  TestProcess& undisturbed = cluster.StartLongRun(length);
  ASSERT_EQ(undisturbed.Wait(), 0) << undisturbed.Transcript();
  // Some of its layers go to another, and come back.
  TestProcess& run = cluster.StartLongRun(length);
  cluster.StartWorker("late", {"--ram", "90MiB"});
  cluster.WaitForStatus("serving (plan 2)");
  TestProcess& with_two = cluster.StartLongRun(length);
  EXPECT_EQ(with_two.Wait(), 0) << with_two.Transcript();
  TestProcess& drain =
      cluster.Launch("drain", {"drain", "--coordinator", cluster.address(), "late"});
  EXPECT_EQ(drain.Wait(), 0) << drain.Transcript();
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  TestProcess& alone_again = cluster.StartLongRun(length);
  EXPECT_EQ(alone_again.Wait(), 0) << alone_again.Transcript();
  for (const TestProcess* each : {&run, &with_two, &alone_again}) {
    EXPECT_EQ(each->Out(), undisturbed.Out());
  }
  EXPECT_THAT(box.Err(), AllOf(ContainsRegex("experts=(128|256) .*held=[1-9]"),
                               ContainsRegex("experts=384 .*held=[1-9]")));
  const int64_t peak = PeakMemory(box.pid());
  EXPECT_GT(peak, 0);
  EXPECT_TRUE(kSanitized || peak <= (int64_t{90} << 20) * 102 / 100) << peak;
}

TEST(PackedModelTest, AWorkerShowsItsHitsAndBeginsWithWhatItsLastRunLearned) {
  TestCluster cluster;
  const std::string pack = MakeModelOfManyExperts(cluster);
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"}, pack);
  const std::string trace = cluster.dir().File("trace");
  TestProcess& first = cluster.StartWorker(
      "first", {"--ram", "90MiB", "--record-routing", trace, "--verify-experts", "every"});
  cluster.WaitForStatus("serving");
  TestProcess& run = cluster.StartRun("What is 487 + 358?", {"--max-tokens", "16"});
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  cluster.WaitForStatus("% hits");
  first.Signal(SIGTERM);
  EXPECT_EQ(first.Wait(), 0) << first.Transcript();
  EXPECT_THAT(first.Err(), Not(HasSubstr("expert_heat")));
  const std::string heat = pack + "/expert-heat-1-2.json";
  EXPECT_TRUE(FileExists(heat));

  TestProcess& second = cluster.StartWorker(
      "second", {"--ram", "90MiB", "--record-routing", trace, "--expert-policy", "lfu"});
  cluster.WaitForStatus("second");
  EXPECT_TRUE(second.WaitForErr("expert_heat_loaded path=" + heat)) << second.Transcript();
  cluster.WaitForStatus("serving");
  second.Signal(SIGTERM);
  EXPECT_EQ(second.Wait(), 0);
  // One of another policy knows nothing of that, and says so.
  TestProcess& third = cluster.StartWorker("third", {"--ram", "90MiB", "--expert-policy", "lru"});
  EXPECT_TRUE(third.WaitForErr("expert_heat_skipped")) << third.Transcript();
  cluster.WaitForStatus("serving");

  TestProcess& bench = cluster.Launch(
      "bench", {"bench", "cache", "--trace", trace + "-1-2", "--policy", "lru", "--share", "0.5"});
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), ContainsRegex("\\| 64 \\| 50.0% \\| \\*\\*lru\\*\\* \\|"));
}

TEST(PackedModelTest, WhatRunsGoesOnWithoutAWorkerWhoseDiskLosesData) {
  TestCluster cluster;
  const std::string pack = MakeModelOfManyExperts(cluster);
  const std::string copy = cluster.dir().File("copy");
  std::filesystem::copy(pack, copy);
  cluster.StartCoordinator({"--workers", "2", "--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"},
                           pack);
  cluster.StartWorker("good", {"--ram", "90MiB"}).WaitForErr("joined");
  cluster.StartWorker("bad", {"--ram", "90MiB", "--model", copy, "--verify-experts", "every"});
  cluster.WaitForStatus("serving");
  EXPECT_THAT(cluster.Status(), ContainsRegex("bad .* of 128 experts\n"));
  const std::vector<std::string> length = {"--max-tokens", "200"};
  TestProcess& undisturbed = cluster.StartLongRun(length);
  ASSERT_EQ(undisturbed.Wait(), 0) << undisturbed.Transcript();
  for (const auto& file : std::filesystem::directory_iterator(copy)) {
    if (file.file_size() < (1 << 20)) continue;
    std::ofstream(file.path(), std::ios::in | std::ios::out | std::ios::binary)
        << std::string(file.file_size(), 'x');
  }
  TestProcess& run = cluster.StartLongRun(length);
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), undisturbed.Out());
  cluster.WaitForStatus("serving; left out: worker bad: ");
  EXPECT_THAT(cluster.Status(), HasSubstr("layer 1, expert"));
}

TEST(PackedModelTest, AWorkerThatIsToldToKeepsAllExpertsInMemory) {
  TestCluster cluster;
  cluster.StartCoordinator({"--tokenizer", CARAVAN_SOURCE_DIR "/models/tiny-r1"},
                           MakeModelOfManyExperts(cluster));
  cluster.StartWorker("box", {"--ram", "90MiB", "--offload", "off"});
  cluster.WaitForStatus("but the worker offers 90.0 MiB\n");
  TestProcess& wrong = cluster.StartWorker("wrong", {"--offload", "perhaps"});
  EXPECT_EQ(wrong.Wait(), 2) << wrong.Transcript();
  EXPECT_THAT(wrong.Err(), HasSubstr("--offload"));
}

TEST(PackedModelTest, ACalibratedPackAnswers) {
  TestCluster cluster;
  const std::string model = CARAVAN_SOURCE_DIR "/models/tiny-r1";
  const std::string imatrix = cluster.dir().File("tiny.imatrix");
  const std::string text = cluster.dir().Write(
      "text", "<｜User｜>What is 487 + 358?<｜Assistant｜>487 + 358 = 845<｜end▁of▁sentence｜>");
  TestProcess& calibrate = cluster.Launch("calibrate", {"calibrate", "--model", model, "--text",
                                                        text, "--out", imatrix, "--window", "16"});
  ASSERT_EQ(calibrate.Wait(), 0) << calibrate.Transcript();
  const std::string packed = cluster.dir().File("packed");
  TestProcess& pack = cluster.Launch("pack", {"pack", "--model", model, "--out", packed, "--preset",
                                              "8bit", "--imatrix", imatrix});
  ASSERT_EQ(pack.Wait(), 0) << pack.Transcript();
  const std::string tasks = cluster.dir().Write(
      "tasks", R"({"task": "add", "question": "What is 487 + 358?", "answer": "487 + 358 = 845"})");
  TestProcess& eval = cluster.Launch("eval", {"eval", "--model", packed, "--tasks", tasks});
  EXPECT_EQ(eval.Wait(), 0) << eval.Transcript();
  EXPECT_THAT(eval.Out(), HasSubstr("1 / 1"));

  TestProcess& bad = cluster.Launch("bad", {"pack", "--model", model, "--out", packed + "2",
                                            "--preset", "8bit", "--imatrix", text});
  EXPECT_EQ(bad.Wait(), 2) << bad.Transcript();
  EXPECT_THAT(bad.Err(), HasSubstr(text));
  TestProcess& empty = cluster.Launch(
      "empty", {"calibrate", "--model", model, "--text", "/dev/null", "--out", imatrix});
  EXPECT_EQ(empty.Wait(), 2) << empty.Transcript();
  EXPECT_THAT(empty.Err(), HasSubstr("/dev/null"));
}

}  // namespace
}  // namespace caravan
