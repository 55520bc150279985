// caravan probe as a process: what it writes is what caravan plan reads.

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "cluster/box_json.h"
#include "cluster/machine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

/// Of all names in a directory.
std::vector<std::string> Names(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

std::vector<std::string> QuickProbe(const TempDir& dir) {
  return {"probe", "--disk",    dir.path(), "--size",   "64MiB", "--seconds",
          "0.01",  "--threads", "1",        "--device", "cpu"};
}

TEST(ProbeBoxTest, WritesABoxThatPlansAreMadeWith) {
  TestCluster cluster;
  const TempDir dir;
  const std::string path = dir.File("box.json");
  dir.Write("weights", std::string(1 << 20, 'x'));
  TestProcess& listener = cluster.Launch("listen", {"probe", "listen", "127.0.0.1:0"});
  listener.WaitForOut("until interrupted");
  const std::string prefix = "listening on ";
  ASSERT_THAT(listener.Out(), StartsWith(prefix));
  const std::string far =
      listener.Out().substr(prefix.size(), listener.Out().find(' ', prefix.size()) - prefix.size());

  std::vector<std::string> arguments = QuickProbe(dir);
  arguments.insert(arguments.end(), {"--out", path, "--link", far, "--name", "test box"});
  TestProcess& probe = cluster.Launch("probe", arguments);
  ASSERT_EQ(probe.Wait(), 0) << probe.Transcript();
  EXPECT_THAT(probe.Out(), StartsWith("box \"test box\"\n"));
  EXPECT_THAT(probe.Err(), HasSubstr("memory is read at "));
  EXPECT_THAT(Names(dir.path()), ::testing::UnorderedElementsAre("box.json", "weights"));

  const absl::StatusOr<std::vector<BoxCount>> boxes = ReadBoxes(path);
  ASSERT_TRUE(boxes.ok()) << boxes.status();
  ASSERT_EQ(boxes->size(), 1u);
  EXPECT_EQ(boxes->front().count, 1);
  const Box& box = boxes->front().box;
  EXPECT_EQ(box.name, "test box");
  EXPECT_EQ(box.cpu.cores, 1);
  const Machine machine = *ProbeMachine();
  EXPECT_EQ(box.memory.total_bytes, machine.memory_bytes);
  EXPECT_GT(box.memory.bytes, 0);
  EXPECT_GT(box.memory.read_bytes, 1e8);
  EXPECT_GT(box.cpu.multiply_adds, 1e7);
  EXPECT_GT(box.cpu.attention_multiply_adds, 1e6);
  EXPECT_GT(box.disk.read_bytes, 1e6);
  // What is free there, and the file that lies there.
  EXPECT_GT(box.disk.bytes, 1 << 20);
  EXPECT_EQ(box.card.count, 0);
  EXPECT_GT(box.network.bytes, 1e5);
  EXPECT_GT(box.network.latency_seconds, 0);
  EXPECT_LT(box.network.latency_seconds, 1);
  for (const Box::Part* const part :
       {static_cast<const Box::Part*>(&box.cpu), static_cast<const Box::Part*>(&box.memory),
        static_cast<const Box::Part*>(&box.disk), static_cast<const Box::Part*>(&box.network)}) {
    EXPECT_FALSE(part->sources.empty());
  }
  EXPECT_EQ(BoxToJson(box), nlohmann::json::parse(Slurp(path)));

  TestProcess& plan = cluster.Launch(
      "plan", {"plan", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1", "--boxes", path});
  EXPECT_EQ(plan.Wait(), 0) << plan.Transcript();
  EXPECT_THAT(plan.Out(), HasSubstr("test box"));
}

TEST(ProbeBoxTest, PrintsTheSameAsOneLineOfJson) {
  TestCluster cluster;
  const TempDir dir;
  std::vector<std::string> arguments = QuickProbe(dir);
  arguments.push_back("--json");
  TestProcess& probe = cluster.Launch("probe", arguments);
  ASSERT_EQ(probe.Wait(), 0) << probe.Transcript();
  const absl::StatusOr<Box> box = BoxFromJson(
      nlohmann::json::parse(probe.Out(), nullptr, /*allow_exceptions=*/false), "stdout");
  ASSERT_TRUE(box.ok()) << box.status() << probe.Transcript();
  EXPECT_EQ(box->network.bytes, 0);
}

TEST(ProbeBoxTest, DrivesWithTheSameFilesAreReadAtOnce) {
  TestCluster cluster;
  const TempDir dir;
  const TempDir mirror;
  std::vector<std::string> arguments = QuickProbe(dir);
  arguments.insert(arguments.end(), {"--json", "--mirror", mirror.path()});
  TestProcess& probe = cluster.Launch("probe", arguments);
  ASSERT_EQ(probe.Wait(), 0) << probe.Transcript();
  EXPECT_THAT(probe.Err(), HasSubstr("2 drives are read at "));
  const absl::StatusOr<Box> box = BoxFromJson(
      nlohmann::json::parse(probe.Out(), nullptr, /*allow_exceptions=*/false), "stdout");
  ASSERT_TRUE(box.ok()) << box.status() << probe.Transcript();
  EXPECT_EQ(box->disk.drives, 2);
  EXPECT_GT(box->disk.read_bytes, 1e6);
  EXPECT_THAT(Names(mirror.path()), ::testing::IsEmpty());

  arguments.back() = "/nonexistent";
  TestProcess& nowhere = cluster.Launch("nowhere", arguments);
  EXPECT_EQ(nowhere.Wait(), 2) << nowhere.Transcript();
  EXPECT_THAT(nowhere.Err(), HasSubstr("/nonexistent"));
}

TEST(ProbeBoxTest, AnInterruptedProbeLeavesNothing) {
  TestCluster cluster;
  const TempDir dir;
  TestProcess& probe = cluster.Launch(
      "probe", {"probe", "--disk", dir.path(), "--out", dir.File("box.json"), "--size", "64MiB",
                "--seconds", "2", "--threads", "1", "--device", "cpu"});
  probe.WaitForErr("the disk is read at ");
  probe.Signal(SIGINT);
  EXPECT_EQ(probe.Wait(), 130) << probe.Transcript();
  EXPECT_THAT(probe.Err(), HasSubstr("measuring was stopped"));
  EXPECT_EQ(probe.Out(), "");
  EXPECT_THAT(Names(dir.path()), ::testing::IsEmpty());
}

TEST(ProbeBoxTest, SaysBeforeItMeasuresWhatItCannotReach) {
  TestCluster cluster;
  const TempDir dir;
  std::vector<std::string> arguments = QuickProbe(dir);
  arguments.insert(arguments.end(), {"--link", "nowhere.invalid:7071"});
  TestProcess& probe = cluster.Launch("probe", arguments);
  EXPECT_EQ(probe.Wait(), 3) << probe.Transcript();
  EXPECT_THAT(probe.Err(),
              StartsWith("caravan: nobody who can be probed answers at nowhere.invalid:7071: "));
}

TEST(ProbeBoxTest, GoesOnWithoutACardAndSaysWhy) {
  TestCluster cluster;
  const TempDir dir;
  std::vector<std::string> arguments = QuickProbe(dir);
  arguments.back() = "auto";
  arguments.push_back("--json");
  TestProcess& probe = cluster.Launch("probe", arguments);
  ASSERT_EQ(probe.Wait(), 0) << probe.Transcript();
  const nlohmann::json box = nlohmann::json::parse(probe.Out());
  // On a machine with a card that is measured.
  EXPECT_NE(box.contains("card"), probe.Err().find("no card is measured: ") != std::string::npos)
      << probe.Transcript();
}

}  // namespace
}  // namespace caravan
