// caravan bench offload: its table adds up, it keeps to its memory, and what it says to wrong
// flags.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/byte_size.h"
#include "base/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/pack/pack_manifest.h"
#include "model/pack/packed_model.h"
#include "nlohmann/json.hpp"
#include "tests/cli/synth_pack.h"
#include "tests/support/memory_cgroup.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Two layers, of which each has so many experts, four of them a token.
std::string MakeModel(TestCluster& cluster, int experts, int hidden) {
  nlohmann::json config =
      nlohmann::json::parse(Slurp(CARAVAN_SOURCE_DIR "/tests/data/goldens/v3-like/config.json"));
  config["hidden_size"] = hidden;
  config["moe_intermediate_size"] = 1024;
  config["n_routed_experts"] = experts;
  config["first_k_dense_replace"] = 0;
  config["num_hidden_layers"] = 2;
  return MakeSynthPack(cluster, config);
}

std::vector<std::string> BenchOffload(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"bench", "offload", "--threads", "2"});
  return arguments;
}

/// A row of the table, by column.
struct Row {
  double workers, jobs, slots, tokens_per_s, touched, hit_percent, reads, mib, gb_per_s, alone;
  double share_percent, in_turn, in_turn_percent, disk, compute, bulk_percent;
};

std::vector<Row> Rows(const std::string& out) {
  std::vector<Row> rows;
  for (const absl::string_view line : absl::StrSplit(out, '\n')) {
    std::vector<absl::string_view> cells = absl::StrSplit(line, " | ");
    if (cells.size() != 16 || cells[0] == "| workers") continue;
    cells[0].remove_prefix(2);
    cells[15].remove_suffix(2);
    Row row;
    double* const values = &row.workers;
    for (size_t i = 0; i < cells.size(); ++i) {
      values[i] = INFINITY;  // "-"
      if (cells[i] == "-") continue;
      EXPECT_TRUE(absl::SimpleAtod(absl::StripSuffix(cells[i], "%"), &values[i])) << line;
    }
    rows.push_back(row);
  }
  return rows;
}

TEST(BenchOffloadTest, ItsTableAddsUp) {
  TestCluster cluster;
  const std::string pack = MakeModel(cluster, 64, 256);
  const auto model = PackedModel::Open(pack);
  ASSERT_TRUE(model.ok()) << model.status();
  const double expert_mib =
      static_cast<double>((*model)->FindExperts(0)->experts.stride) / (1 << 20);
  TestProcess& bench = cluster.Launch(
      "bench",
      BenchOffload({"--model", pack, "--ram", "120MiB", "--kv", "f16", "--jobs", "1,12", "--tokens",
                    "48", "--workers", "2", "--rounds", "1", "--routing", "zipf=0.5,seed=3"}));
  ASSERT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), AllOf(HasSubstr("among them 128 experts of "),
                                 HasSubstr("made-up routing: zipf=0.5,sticky=0.3,seed=3, 4 of 64"),
                                 HasSubstr(" of memory were resident, ")));
  const std::vector<Row> rows = Rows(bench.Out());
  ASSERT_EQ(rows.size(), 4u) << bench.Out();
  for (const Row& row : rows) {
    SCOPED_TRACE(absl::StrCat(row.workers, " workers, ", row.jobs, " jobs\n", bench.Out()));
    EXPECT_GE(row.slots, 8);
    EXPECT_LT(row.slots, 128);
    EXPECT_GT(row.tokens_per_s, 0);
    // A token's choices in a layer are different ones; rows share some.
    EXPECT_LE(row.touched, 2 * 4 * row.jobs);
    EXPECT_GE(row.touched, 2 * 4);
    // To the last digit that is printed of each.
    EXPECT_NEAR(row.mib, row.reads * expert_mib, 0.005 + 0.0005 * expert_mib);
    EXPECT_NEAR(row.share_percent, 100 * row.gb_per_s / row.alone,
                0.5 + 100 * 0.005 * (1 + row.gb_per_s / row.alone) / row.alone);
    // A bound times what was reached of it is what was reached.
    EXPECT_NEAR(row.in_turn * row.in_turn_percent / 100, row.tokens_per_s,
                0.005 + 0.005 * row.in_turn_percent / 100 + 0.005 * row.in_turn);
    const double lower = std::fmin(row.disk, row.compute);
    EXPECT_NEAR(lower * row.bulk_percent / 100, row.tokens_per_s,
                0.005 + 0.005 * row.bulk_percent / 100 + 0.005 * lower);
  }
  EXPECT_EQ(rows[0].jobs, 1);
  EXPECT_EQ(rows[0].workers, 1);
  EXPECT_EQ(rows[1].workers, 2);
  EXPECT_EQ(rows[2].jobs, 12);
  // All are in each step: six could not choose so many.
  EXPECT_GT(rows[2].touched, 2 * 4 * 6);
  // One token a step, which misses what it does not hit, and nothing is guessed.
  EXPECT_EQ(rows[0].touched, 8);
  EXPECT_NEAR(rows[0].reads, 8 * (1 - rows[0].hit_percent / 100), 0.0005 + 8 * 0.0005);
  EXPECT_GT(rows[0].reads, 0);
}

TEST(BenchOffloadTest, TheModelsOwnRoutersMayChoose) {
  TestCluster cluster;
  const std::string pack = MakeModel(cluster, 64, 256);
  TestProcess& bench = cluster.Launch(
      "bench", BenchOffload({"--model", pack, "--ram", "120MiB", "--jobs", "1", "--tokens", "8",
                             "--rounds", "1", "--routing", "model"}));
  EXPECT_EQ(bench.Wait(), 0) << bench.Transcript();
  EXPECT_THAT(bench.Out(), HasSubstr("the model's own routing, 4 of 64 experts"));
  EXPECT_EQ(Rows(bench.Out()).size(), 1u);
}

TEST(BenchOffloadTest, AModelOfFourTimesTheLimitRunsWithinIt) {
  constexpr int64_t kRam = int64_t{128} << 20;
  if (kSanitized) GTEST_SKIP() << "a sanitizer's shadow memory is not in the budget";
  const auto cgroup = MemoryCgroup::Make(kRam * 102 / 100);
  if (cgroup == nullptr) GTEST_SKIP() << "no memory cgroup can be made here";
  TestCluster cluster;
  const std::string pack = MakeModel(cluster, 176, 512);
  const auto model = PackedModel::Open(pack);
  ASSERT_TRUE(model.ok()) << model.status();
  const PackedExperts& experts = (*model)->FindExperts(0)->experts;
  ASSERT_GE(2 * experts.count * experts.stride, 4 * kRam);

  Subprocess::Options options;
  options.command = {"/bin/sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", cgroup->entrance(),
                     CARAVAN_BINARY};
  for (const std::string& argument :
       BenchOffload({"--model", pack, "--ram", absl::StrCat(kRam), "--jobs", "1,8,64", "--tokens",
                     "64", "--rounds", "1"})) {
    options.command.push_back(argument);
  }
  options.stdout_path = cluster.dir().File("limited.out");
  options.stderr_path = cluster.dir().File("limited.err");
  auto limited = Subprocess::Start(options);
  ASSERT_TRUE(limited.ok()) << limited.status();
  const std::optional<int> code = limited->Wait(kTestDeadline);
  // 137, had the kernel killed it.
  EXPECT_EQ(code.value_or(-1), 0) << Slurp(options.stdout_path) << Slurp(options.stderr_path);
  EXPECT_EQ(Rows(Slurp(options.stdout_path)).size(), 3u) << Slurp(options.stdout_path);
}

TEST(BenchOffloadTest, ABudgetThatIsTooLittleIsSaidAsItWasGiven) {
  TestCluster cluster;
  const std::string pack = MakeModel(cluster, 64, 256);
  using Case = std::pair<std::vector<std::string>, std::string>;
  for (const auto& [arguments, says] :
       {Case{{"--ram", "60MiB"}, "--ram 60.0 MiB, of which 17.5 MiB are for measuring the disk: "},
        Case{{"--ram", "120MiB", "--jobs", "512", "--tokens", "256000"},
             "--ram: beside the experts, 120 MiB leave room for a KV cache of "}}) {
    std::vector<std::string> command = BenchOffload({"--model", pack});
    command.insert(command.end(), arguments.begin(), arguments.end());
    TestProcess& process = cluster.Launch("refused", command);
    EXPECT_EQ(process.Wait(), 2) << process.Transcript();
    EXPECT_THAT(process.Err(), HasSubstr(says)) << process.Transcript();
  }
}

TEST(BenchOffloadTest, WrongFlagsAndModelsGetASentence) {
  TestCluster cluster;
  const std::string pack = MakeModel(cluster, 16, 256);
  const std::string tiny = CARAVAN_SOURCE_DIR "/models/tiny-r1";
  using Case = std::pair<std::vector<std::string>, std::string>;
  for (const auto& [arguments, says] : {
           Case{{"--ram", "1GiB"}, "--model is required"},
           Case{{"--model", pack}, "--ram is required"},
           Case{{"--model", pack, "--ram", "0"}, "--ram: must be more than 0"},
           Case{{"--model", pack, "--ram", "1GiB", "--jobs", "0"}, "--jobs"},
           Case{{"--model", pack, "--ram", "1GiB", "--jobs", "513"}, "--jobs"},
           Case{{"--model", pack, "--ram", "1GiB", "--tokens", "-1"}, "--tokens"},
           Case{{"--model", pack, "--ram", "1GiB", "--seed", "-1"}, "--seed"},
           Case{{"--model", pack, "--ram", "1GiB", "--routing", ""},
                "--routing: must not be empty"},
           Case{{"--model", pack, "--ram", "1GiB", "--routing", "topic=1"},
                "--routing: \"topic=1\" is no NAME=NUMBER among zipf, sticky and seed"},
           Case{{"--model", pack, "--ram", "1GiB", "--routing", "sticky=2"},
                "--routing: sticky is 2, not 0 to 1"},
           Case{{"--model", pack, "--ram", "1GiB", "--workers", "3"}, "--workers 3"},
           Case{{"--model", pack, "--ram", "1GiB", "--context", "5"}, "--context"},
           Case{{"--model", pack, "--ram", "120MiB", "--guess-experts", "on"},
                "--guess-experts on: no router foretells made-up choices"},
           Case{{"--model", pack, "--ram", "120MiB", "--record-routing", "x"},
                "--record-routing: made-up choices are not the model's"},
           Case{{"--model", pack, "--ram", "1KiB"}, "--ram: measuring the disk alone takes "},
           Case{{"--model", pack, "--ram", "8GiB"}, "hold all experts, so nothing would be read"},
           Case{{"--model", tiny, "--ram", "1GiB"}, tiny + ": is no packed model"},
       }) {
    TestProcess& process = cluster.Launch("refused", BenchOffload(arguments));
    EXPECT_EQ(process.Wait(), 2) << process.Transcript();
    EXPECT_THAT(process.Err(), HasSubstr(says)) << process.Transcript();
  }
}

}  // namespace
}  // namespace caravan
