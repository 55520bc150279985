// `caravan pack` as a person runs it, and clusters of what it makes.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";

std::vector<std::string> PackTo(const std::string& directory) {
  return {"pack", "--model", kModel, "--out", directory, "--experts", "q4_K", "--dense", "q8_0"};
}

TEST(PackTest, AClusterServesWhatWasPackedAlsoWhereOneWorkerHasNoFiles) {
  TestCluster cluster;
  const std::string packed = cluster.dir().File("packed");
  TestProcess& pack = cluster.Launch("pack", PackTo(packed));
  ASSERT_EQ(pack.Wait(), 0);
  EXPECT_THAT(pack.Out(), HasSubstr("bits a weight"));
  TestProcess& check = cluster.Launch("check", {"pack", "--check", packed});
  EXPECT_EQ(check.Wait(), 0);
  EXPECT_THAT(check.Out(), HasSubstr("files are as they were packed"));

  // This path names another directory in each process.
  cluster.StartCoordinator({"--workers", "2"}, "/proc/self/cwd", packed);
  TestProcess& with = cluster.StartWorker("with", {"--model", packed});
  TestProcess& without = cluster.StartWorker("without");
  cluster.ExpectAnswers();
  EXPECT_THAT(with.Err(), Not(HasSubstr("reading_weights_from_coordinator")));
  EXPECT_THAT(without.Err(), HasSubstr("reading_weights_from_coordinator"));
}

TEST(PackTest, ControlCStopsItAndTheSameCommandGoesOn) {
  TestCluster cluster;
  std::string packed;
  int exit_code = 0;
  // On a busy machine the signal may come after the end.
  for (int attempt = 0; attempt < 20 && exit_code == 0; ++attempt) {
    packed = cluster.dir().File(absl::StrCat("packed-", attempt));
    TestProcess& first = cluster.Launch("first", PackTo(packed));
    ASSERT_TRUE(WaitUntil([&] { return FileExists(packed + "/embedding.bin"); }));
    first.Signal(SIGINT);
    exit_code = first.Wait();
    if (exit_code != 0) {
      EXPECT_THAT(first.Err(), HasSubstr("the same command goes on"));
    }
  }
  ASSERT_EQ(exit_code, 130);
  TestProcess& early = cluster.Launch("early", {"pack", "--check", packed});
  EXPECT_EQ(early.Wait(), 1);
  EXPECT_THAT(early.Err(), HasSubstr("packing was not finished"));

  const auto embedding = std::filesystem::last_write_time(packed + "/embedding.bin");
  TestProcess& second = cluster.Launch("second", PackTo(packed));
  EXPECT_EQ(second.Wait(), 0);
  EXPECT_EQ(std::filesystem::last_write_time(packed + "/embedding.bin"), embedding);
  TestProcess& check = cluster.Launch("check", {"pack", "--check", packed});
  EXPECT_EQ(check.Wait(), 0);
}

TEST(PackTest, ADamagedFileIsNamed) {
  TestCluster cluster;
  const std::string packed = cluster.dir().File("packed");
  ASSERT_EQ(cluster.Launch("pack", PackTo(packed)).Wait(), 0);
  const std::string path = packed + "/layer-001.bin";
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(0);
    file.put(byte);
  }
  TestProcess& check = cluster.Launch("check", {"pack", "--check", packed});
  EXPECT_EQ(check.Wait(), 1);
  EXPECT_THAT(check.Err(), HasSubstr(path));
}

TEST(PackTest, APackOfSomeLayersIsRefusedAsWhatItIs) {
  TestCluster cluster;
  const std::string packed = cluster.dir().File("packed");
  std::vector<std::string> some = PackTo(packed);
  some.insert(some.end(), {"--layers", "2-3"});
  ASSERT_EQ(cluster.Launch("pack", some).Wait(), 0);
  const std::string tasks =
      cluster.dir().Write("tasks.jsonl", R"({"task": "t", "question": "a", "answer": "b"})");
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"bench", "--model", packed},
        {"eval", "--model", packed, "--tasks", tasks}}) {
    TestProcess& process = cluster.Launch("refused", arguments);
    EXPECT_EQ(process.Wait(), 2) << process.Transcript();
    EXPECT_THAT(process.Err(), HasSubstr(packed + ": is a pack of some layers alone"));
  }
}

TEST(PackTest, WrongFlagsGetASentenceThatNamesThem) {
  TestCluster cluster;
  const std::string out = cluster.dir().File("out");
  const auto expect = [&](std::vector<std::string> arguments, const std::string& says) {
    arguments.insert(arguments.begin(), "pack");
    TestProcess& pack = cluster.Launch("pack", arguments);
    EXPECT_EQ(pack.Wait(), 2) << pack.Transcript();
    EXPECT_THAT(pack.Err(), HasSubstr(says));
    EXPECT_FALSE(FileExists(out));
  };
  expect({}, "--model");
  expect({"--model", kModel}, "--out");
  expect({"--model", "/nowhere", "--out", out}, "/nowhere");
  expect({"--model", kModel, "--out", out, "--experts", "q9"}, "--experts: \"q9\"");
  expect({"--model", kModel, "--out", out, "--preset", "5bit"}, "--preset: \"5bit\"");
  expect({"--model", kModel, "--out", out, "--layers", "5-7"},
         "--layers 5-7: the model has layers 0-5");
  for (const std::string layers : {"x", "3-", "-3", "4-3", "0-2147483647"}) {
    expect({"--model", kModel, "--out", out, absl::StrCat("--layers=", layers)},
           absl::StrCat("--layers: \"", layers, "\""));
  }
  expect({"--check", "/nowhere"}, "/nowhere");
  expect({"--check", kModel}, "caravan-pack.json");
}

}  // namespace
}  // namespace caravan
