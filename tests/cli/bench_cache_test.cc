// caravan bench cache: its table, and what it says to wrong flags and files.

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_cluster.h"
#include "worker/experts/routing_trace.h"

namespace caravan {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

std::vector<std::string> BenchCache(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"bench", "cache"});
  return arguments;
}

void ExpectRefusal(TestCluster& cluster, const std::vector<std::string>& arguments,
                   const std::string& says) {
  TestProcess& process = cluster.Launch("refused", BenchCache(arguments));
  EXPECT_EQ(process.Wait(), 2) << process.Transcript();
  EXPECT_THAT(process.Err(), HasSubstr(says)) << process.Transcript();
}

/// Two experts in turns, of which one fits, then a prompt of 20 rows.
void Record(const std::string& path, int first_layer) {
  const auto writer = RoutingTraceWriter::Open(path, {.model_fingerprint = 0xabc,
                                                      .first_layer = first_layer,
                                                      .num_layers = 1,
                                                      .n_routed_experts = 4,
                                                      .num_experts_per_tok = 1});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const float weight = 1;
  for (int32_t i = 0; i < 10; ++i) {
    const int32_t expert = i % 2;
    (*writer)->OnRouting(first_layer, 1, {&expert, 1}, {&weight, 1});
  }
  (*writer)->OnRouting(first_layer, 20, std::vector<int32_t>(20, 1), std::vector<float>(20, 1));
}

TEST(BenchCacheTest, ReplaysATraceBesideTheOptimum) {
  TestCluster cluster;
  const std::string trace = cluster.dir().File("trace");
  Record(trace, 3);
  TestProcess& bench = cluster.Launch("bench", BenchCache({"--trace", trace, "--slots", "1,2"}));
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), HasSubstr("model 0000000000000abc, layers 3 to 3, 1 of 4 experts"));
  EXPECT_THAT(bench.Out(), HasSubstr("10 tokens in steps of up to 16 rows, 20 in steps of more"));
  // lru reads each time, the optimum keeps one of the two; it has the prompt's at the end.
  EXPECT_THAT(bench.Out(), HasSubstr("| 1 | 25.0% | **lru** | 0.0% | 1.00 | 100.0% | 0.00 |"));
  EXPECT_THAT(bench.Out(), HasSubstr("| 1 | 25.0% | optimum | 40.0% | 0.60 | 100.0% | 0.00 |"));
  EXPECT_THAT(bench.Out(), HasSubstr("| 2 | 50.0% | **lru** | 80.0% | 0.20 | 100.0% | 0.00 |"));
}

TEST(BenchCacheTest, TracesOfOneStageFollowEachOther) {
  TestCluster cluster;
  const std::string trace = cluster.dir().File("trace");
  const std::string torn = cluster.dir().File("torn");
  Record(trace, 3);
  Record(torn, 3);
  Record(torn, 3);
  std::filesystem::resize_file(torn, std::filesystem::file_size(torn) - 1);
  TestProcess& bench = cluster.Launch("bench", BenchCache({"--trace", trace, "--trace", torn,
                                                           "--share", "0.5", "--policy", "lru"}));
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), HasSubstr("20 tokens in steps of up to 16 rows, 40 in steps of more"));
  EXPECT_THAT(bench.Err(), HasSubstr(torn + ": ignored a torn block of "));

  const std::string other = cluster.dir().File("other");
  Record(other, 4);
  ExpectRefusal(cluster, {"--trace", trace, "--trace", other},
                other + ": is of another model or of other layers than " + trace);
}

TEST(BenchCacheTest, ReplaysWhatVerifyRecordsWhateverItsStages) {
  TestCluster cluster;
  const std::string directory = cluster.dir().File("traces");
  std::filesystem::create_directory(directory);
  const auto verify = [&](const std::string& prefix, const std::string& workers) {
    TestProcess& process = cluster.Launch(
        "verify", {"verify", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1", "--golden",
                   CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-golden.safetensors", "--chunk",
                   "16", "--workers", workers, "--record-routing", directory + "/" + prefix});
    ASSERT_EQ(process.Wait(), 0) << process.Transcript();
  };
  // Of one trace: what is said of the model and of its tokens.
  const auto bench = [&](const std::string& trace) {
    TestProcess& process = cluster.Launch("bench", BenchCache({"--trace", trace}));
    EXPECT_EQ(process.Wait(), 0) << process.Transcript();
    return process.Out();
  };
  verify("one", "1");
  const std::string whole = bench(directory + "/one-1-6");
  EXPECT_THAT(whole, HasSubstr(", layers 1 to 5, 4 of 32 experts"));
  EXPECT_THAT(whole, ContainsRegex("[1-9][0-9]* tokens in steps of up to 16 rows, 0 in steps"));
  const std::string tokens = whole.substr(0, whole.find(" tokens in steps"));
  verify("two", "2");
  int first_stages = 0;
  int last_stages = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename();
    if (name.substr(0, 3) != "two") continue;
    first_stages += name.substr(0, 6) == "two-1-";
    last_stages += name.substr(name.size() - 2) == "-6";
    EXPECT_THAT(bench(entry.path()), HasSubstr(tokens.substr(tokens.rfind('\n') + 1) + " tokens"));
  }
  EXPECT_EQ(first_stages, 1);
  EXPECT_EQ(last_stages, 1);
}

TEST(BenchCacheTest, RunsMadeUpRouting) {
  TestCluster cluster;
  const std::vector<std::string> arguments = BenchCache(
      {"--synthetic", "layers=3,experts=32,k=4,rows=2,tokens=100,topic=50,prompt=40,seed=7",
       "--share", "0.25"});
  TestProcess& bench = cluster.Launch("bench", arguments);
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(),
              HasSubstr("zipf=0.8,sticky=0.3,layers=3,experts=32,k=4,rows=2,tokens=100,topic=50,"
                        "prompt=40,seed=7"));
  EXPECT_THAT(bench.Out(), HasSubstr("100 tokens in steps of up to 16 rows, 80 in steps of more"));
  EXPECT_THAT(bench.Out(), ContainsRegex("\\| 24 \\| 25.0% \\| \\*\\*(lru|lfu|router)\\*\\* \\|"));
  EXPECT_THAT(bench.Out(), HasSubstr("| optimum |"));
  TestProcess& again = cluster.Launch("again", arguments);
  EXPECT_EQ(again.Wait(), 0);
  EXPECT_EQ(again.Out(), bench.Out());
}

TEST(BenchCacheTest, WrongFlagsAndFilesGetASentence) {
  TestCluster cluster;
  ExpectRefusal(cluster, {}, "--trace or --synthetic is required");
  ExpectRefusal(cluster, {"--synthetic", "zip=1"}, "--synthetic: \"zip=1\" is no NAME=NUMBER");
  ExpectRefusal(cluster, {"--synthetic", "k=many"}, "--synthetic: \"k=many\" is no NAME=NUMBER");
  ExpectRefusal(cluster, {"--synthetic", "k=300"}, "--synthetic: k is 300, not 1 to 256");
  ExpectRefusal(cluster, {"--synthetic", "tokens=-1"}, "--synthetic: tokens, topic and prompt");
  ExpectRefusal(cluster, {"--synthetic", "", "--trace", "x"}, "--trace excludes --synthetic");
  ExpectRefusal(cluster, {"--synthetic", "k=1", "--slots", "1", "--share", "0.1"}, "--share");
  ExpectRefusal(cluster, {"--synthetic", "k=1", "--share", "1.5"}, "--share");
  ExpectRefusal(cluster, {"--synthetic", "layers=1,tokens=1", "--slots", "257"},
                "--slots: 257 are more than the 256 experts");
  ExpectRefusal(cluster, {"--synthetic", "k=1", "--policy", "fifo"},
                "--policy: there is no cache policy \"fifo\" among lru, lfu, router");
  const std::string missing = cluster.dir().File("missing");
  ExpectRefusal(cluster, {"--trace", missing}, missing + ": No such file or directory");
  const std::string config = CARAVAN_SOURCE_DIR "/models/tiny-r1/config.json";
  ExpectRefusal(cluster, {"--trace", config}, config + ": is no routing trace");
}

}  // namespace
}  // namespace caravan
