// What deploy/ ships is true of the program: its units pass systemd's own checks, and what it
// configures exists and serves; so is the manual. The package itself: scripts/test_package.sh.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;

const std::string kDeploy = CARAVAN_SOURCE_DIR "/deploy";
const std::string kModel = CARAVAN_SOURCE_DIR "/models/tiny-r1";
const char kSystemdAnalyze[] = "/usr/bin/systemd-analyze";

// Bookworm's; older ones lack options and words.
constexpr int kOldestSystemd = 252;

// Of 100: what systemd calls "OK" ends at 40.
constexpr int kMostExposure = 20;

/// The units as they are installed, but that they run this build's binary.
class UnitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kSystemdAnalyze)) GTEST_SKIP() << "no " << kSystemdAnalyze;
    ASSERT_EQ(Analyze({"--version"}), 0) << printed_;
    std::smatch found;  // "systemd 252 (252.39-1~deb12u1)"
    ASSERT_TRUE(std::regex_search(printed_, found, std::regex("^systemd ([0-9]+)"))) << printed_;
    const int version = std::stoi(found[1]);
    if (version < kOldestSystemd) {
      GTEST_SKIP() << "systemd " << version << " is older than " << kOldestSystemd
                   << ", which knows all of the units' words";
    }
    const std::string worker = Unit("caravan-worker.service");
    paths_ = {dir_.Write("caravan-coordinator.service", Unit("caravan-coordinator.service")),
              dir_.Write("caravan-worker.service", worker)};
    dir_.Write("caravan-worker@.service", worker);
    paths_.push_back(dir_.File("caravan-worker@second.service"));
  }

  /// Its exit code; what it printed is in `printed_`.
  int Analyze(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), kSystemdAnalyze);
    const std::string output = dir_.File("output");
    absl::StatusOr<Subprocess> process = Subprocess::Start({.command = arguments,
                                                            .stdin_path = "/dev/null",
                                                            .stdout_path = output,
                                                            .stderr_path = output});
    if (!process.ok()) {
      ADD_FAILURE() << process.status();
      return -1;
    }
    const int code = process->Wait(kTestDeadline).value_or(-1);
    printed_ = Slurp(output);
    return code;
  }

  std::vector<std::string> paths_;
  std::string printed_;

 private:
  static std::string Unit(const std::string& name) {
    const std::string text = Slurp(kDeploy + "/systemd/" + name);
    EXPECT_TRUE(absl::StrContains(text, "ExecStart=/usr/bin/caravan ")) << name;
    return absl::StrReplaceAll(text, {{"/usr/bin/caravan", CARAVAN_BINARY}});
  }

  TempDir dir_;
};

TEST_F(UnitsTest, SystemdFindsNothingWrong) {
  std::vector<std::string> arguments = {"verify", "--man=no"};
  arguments.insert(arguments.end(), paths_.begin(), paths_.end());
  EXPECT_EQ(Analyze(arguments), 0) << printed_;
  EXPECT_THAT(printed_, IsEmpty());
}

TEST_F(UnitsTest, AreHardened) {
  for (const std::string& path : {paths_[0], paths_[1]}) {
    EXPECT_EQ(Analyze({"security", "--offline=yes", "--no-pager",
                       absl::StrCat("--threshold=", kMostExposure), path}),
              0)
        << printed_;
  }
}

/// The options of `caravan command`, without their dashes, as its help lists them.
std::set<std::string> OptionsOf(TestCluster& cluster, const std::string& command) {
  TestProcess& help = cluster.Launch("help", {command, "--help"});
  EXPECT_EQ(help.Wait(), 0) << help.Transcript();
  std::set<std::string> options;
  const std::string text = help.Out();
  const std::regex option("--([a-z][a-z-]*)");
  for (std::sregex_iterator at(text.begin(), text.end(), option), end; at != end; ++at) {
    options.insert((*at)[1]);
  }
  return options;
}

/// The options that a configuration sets, or shows in a comment "#option = value".
std::set<std::string> OptionsIn(const std::string& path) {
  std::set<std::string> options;
  const std::regex line("#?([a-z][a-z-]*) = .*");
  for (const absl::string_view each : absl::StrSplit(Slurp(path), '\n')) {
    const std::string text(each);
    std::smatch match;
    if (std::regex_match(text, match, line)) options.insert(match[1]);
  }
  return options;
}

TEST(ConfigurationTest, NamesOnlyOptionsThatThereAre) {
  TestCluster cluster;
  for (const std::string command : {"coordinator", "worker"}) {
    const std::set<std::string> known = OptionsOf(cluster, command);
    const std::string file = absl::StrCat("caravan-", command, ".toml");
    for (const std::string directory :
         {"/config/", "/kubernetes/base/", "/kubernetes/cards/", "/kubernetes/certs/"}) {
      const std::string path = absl::StrCat(kDeploy, directory, file);
      if (command == "coordinator" && directory == "/kubernetes/cards/") continue;
      const std::set<std::string> used = OptionsIn(path);
      EXPECT_THAT(used, Not(IsEmpty())) << path;
      EXPECT_THAT(known, IsSupersetOf(used)) << path;
    }
  }
}

class ComposeTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ComposeTest, NamesOnlyOptionsThatThereAre) {
  TestCluster cluster;
  std::map<std::string, std::set<std::string>> known;
  std::map<std::string, int> seen;
  std::string command;
  const std::regex item(R"( *- (--)?([a-z][a-z-]*)(=.*)?)");
  for (const absl::string_view each :
       absl::StrSplit(Slurp(absl::StrCat(kDeploy, "/docker/", GetParam())), '\n')) {
    const std::string text(each);
    std::smatch match;
    if (!std::regex_match(text, match, item)) continue;
    if (!match[1].matched) {
      command = match[2];
      known[command] = OptionsOf(cluster, command);
    } else {
      EXPECT_THAT(known[command], Contains(match[2].str())) << command;
      ++seen[command];
    }
  }
  EXPECT_GT(seen["coordinator"], 0);
  EXPECT_GT(seen["worker"], 0);
}

INSTANTIATE_TEST_SUITE_P(Files, ComposeTest,
                         ::testing::Values("compose.yaml", "compose.certs.yaml"));

/// What two lists of lines have in common is one thing kept twice.
std::vector<std::string> LinesBut(const std::string& path, const std::string& without) {
  std::vector<std::string> lines;
  for (const absl::string_view each : absl::StrSplit(Slurp(path), '\n')) {
    if (each.empty() || each.front() == '#' || absl::StrContains(each, without)) continue;
    lines.emplace_back(each);
  }
  return lines;
}

TEST(KubernetesTest, TheOptionsWithCertificatesAreTheOthersButForThese) {
  for (const std::string file : {"caravan-coordinator.toml", "caravan-worker.toml"}) {
    EXPECT_EQ(LinesBut(absl::StrCat(kDeploy, "/kubernetes/certs/", file), "certs = "),
              LinesBut(absl::StrCat(kDeploy, "/kubernetes/base/", file), "insecure = "));
  }
}

/// A shipped configuration with its comments' options set, but for `without`.
std::string FilledIn(const std::string& file, const std::set<std::string>& without) {
  std::string filled;
  const std::regex line("#?([a-z][a-z-]*)( = .*)");
  for (const absl::string_view each : absl::StrSplit(Slurp(kDeploy + "/config/" + file), '\n')) {
    const std::string text(each);
    std::smatch match;
    if (!std::regex_match(text, match, line) || without.count(match[1]) > 0) continue;
    absl::StrAppend(&filled, match[1].str(), match[2].str(), "\n");
  }
  return filled;
}

TEST(ConfigurationTest, ServesWhenFilledIn) {
  TestCluster cluster;
  // Ports, paths and sizes that are another machine's come from the command line, which wins.
  const std::string coordinator = cluster.dir().Write(
      "coordinator.toml", FilledIn("caravan-coordinator.toml", {"http", "api-key-file", "certs"}));
  cluster.StartCoordinator({"--config", coordinator});
  const std::string worker = cluster.dir().Write(
      "worker.toml", FilledIn("caravan-worker.toml",
                              {"device", "vram", "certs", "model-cache", "model-cache-size"}));
  for (const char* const name : {"box-1", "box-2"}) {
    // As the units have it, each with a directory of its own.
    cluster.StartWorker(
        name, {"--config", worker, "--model", kModel, "--kv-disk", "64MiB", "--kv-archive", "64MiB",
               "--box", cluster.dir().File(absl::StrCat(name, ".json")), "--kv-archive-dir",
               cluster.dir().File(name), "--kv-disk-dir", cluster.dir().path()});
  }
  cluster.WaitForStatus("serving");
  cluster.ExpectAnswers();
}

/// What a page of the manual says, as troff.
std::string PageText(const std::string& path) {
  const TempDir dir;
  const std::string text = dir.File("text");
  absl::StatusOr<Subprocess> zcat = Subprocess::Start({.command = {"/bin/zcat", path},
                                                       .stdin_path = "/dev/null",
                                                       .stdout_path = text,
                                                       .stderr_path = dir.File("errors")});
  EXPECT_TRUE(zcat.ok() && zcat->Wait(kTestDeadline) == 0) << path;
  return Slurp(text);
}

TEST(ManualTest, HasAPageForEachSubcommandWithItsOptions) {
  if (!std::filesystem::exists("/usr/bin/help2man")) GTEST_SKIP() << "no help2man";
  const TempDir dir;
  const std::string said = dir.File("said");
  const std::string pages = dir.File("pages");
  absl::StatusOr<Subprocess> script = Subprocess::Start(
      {.command = {CARAVAN_SOURCE_DIR "/scripts/man_pages.sh", CARAVAN_BINARY, pages},
       .stdin_path = "/dev/null",
       .stdout_path = said,
       .stderr_path = said});
  ASSERT_TRUE(script.ok()) << script.status();
  ASSERT_EQ(script->Wait(kTestDeadline), 0) << Slurp(said);
  EXPECT_THAT(PageText(pages + "/caravan.1.gz"),
              AllOf(HasSubstr(".SH SYNOPSIS"), HasSubstr("caravan-worker (1)"),
                    HasSubstr("Show a coordinator's workers, stages and jobs")));
  // One word before the dash, by which apropos finds it.
  EXPECT_THAT(
      PageText(pages + "/caravan-certs-init.1.gz"),
      AllOf(HasSubstr(".TH CARAVAN-CERTS-INIT"), HasSubstr("\ncaravan-certs-init \\- Make a "),
            HasSubstr("\\fB\\-\\-days\\fR")));
  TestCluster cluster;
  for (const std::string command : {"coordinator", "worker", "plan", "probe"}) {
    const std::string page = absl::StrReplaceAll(
        PageText(absl::StrCat(pages, "/caravan-", command, ".1.gz")), {{"\\-", "-"}});
    for (const std::string& option : OptionsOf(cluster, command)) {
      EXPECT_THAT(page, HasSubstr("--" + option)) << command;
    }
  }
}

}  // namespace
}  // namespace caravan
