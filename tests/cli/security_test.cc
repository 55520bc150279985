// Clusters with certificates, of real processes: who gets in, who does not, and what they are told.

#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cluster/certificate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kVariable[] = "CARAVAN_CERTS";

/// A cluster with an authority; clients get their certificate from the environment.
class SecurityTest : public ::testing::Test {
 protected:
  SecurityTest() {
    Certs({"init", ca_});
    Certs({"add-client", "ann", ca_});
    Certs({"add-box", "box-a", ca_});
    Certs({"add-box", "box-b", ca_});
    ::setenv(kVariable, Client().c_str(), 1);
  }
  // The cluster outlives its clients.
  ~SecurityTest() override { ::unsetenv(kVariable); }

  std::string File(const std::string& name) const { return cluster_.dir().File(name); }
  std::string Client() const { return absl::StrCat(ca_, "/clients/ann"); }
  std::string Box(const std::string& name) const { return absl::StrCat(ca_, "/boxes/", name); }

  /// What `caravan certs arguments...` prints; it must go well.
  std::string Certs(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "certs");
    TestProcess& certs = cluster_.Launch("certs", std::move(arguments));
    EXPECT_EQ(certs.Wait(), 0) << certs.Transcript();
    return certs.Out();
  }

  void StartCoordinator(std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.end(), {"--certs", ca_});
    cluster_.StartCoordinator(std::move(arguments));
  }
  TestProcess& StartWorker(const std::string& name, const std::string& certs,
                           std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.end(), {"--certs", certs});
    return cluster_.StartWorker(name, std::move(arguments));
  }
  /// Two workers that serve.
  void Start() {
    StartCoordinator({"--workers", "2"});
    for (const char* name : {"box-a", "box-b"}) {
      StartWorker(name, Box(name)).WaitForErr("joined");
    }
    cluster_.WaitForStatus("serving");
  }

  /// It ended with one sentence that says why, and the cluster goes on.
  void ExpectRefused(TestProcess& process, int exit_code, const std::string& why) {
    EXPECT_EQ(process.Wait(), exit_code) << process.Transcript();
    EXPECT_THAT(process.Err(), HasSubstr(why));
    cluster_.ExpectAnswers();
  }

  TestCluster cluster_;
  const std::string ca_ = cluster_.dir().File("ca");
};

TEST_F(SecurityTest, AClusterWithCertificatesServes) {
  Start();
  cluster_.ExpectAnswers();
  EXPECT_THAT(cluster_.coordinator().Err(),
              AllOf(HasSubstr("identity=worker/box-a"), HasSubstr("identity=worker/box-b")));
  for (const char* name : {"box-a", "box-b"}) {
    EXPECT_THAT(cluster_.worker(name).Err(), Not(HasSubstr("WARNING")));
  }
}

TEST_F(SecurityTest, KvBlocksGoTheSameWay) {
  StartCoordinator({"--workers", "2"});
  for (const char* name : {"box-a", "box-b"}) {
    StartWorker(name, Box(name),
                {"--kv-archive", "64MiB", "--kv-archive-dir", File(absl::StrCat("kv-", name)),
                 "--kv-replica", "peer"})
        .WaitForErr("joined");
  }
  cluster_.WaitForStatus("serving");
  TestProcess& run = cluster_.StartLongRun({"--max-tokens", "200"});
  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  // Each has what both have computed.
  for (const char* name : {"box-a", "box-b"}) {
    EXPECT_TRUE(WaitUntil([&] {
      std::set<std::string> layers;
      std::error_code gone;
      const std::filesystem::path kv = File(absl::StrCat("kv-", name));
      for (std::filesystem::recursive_directory_iterator each(kv, gone), end; each != end;
           each.increment(gone)) {
        if (each->path().extension() != ".kv") continue;
        const std::string file = each->path().filename();
        layers.insert(file.substr(file.find('-')));
      }
      return layers.size() == 2;
    })) << name;
    EXPECT_THAT(cluster_.worker(name).Err(), Not(HasSubstr("WARNING")));
  }
}

TEST_F(SecurityTest, WeightsGoTheSameWay) {
  // This path names another directory in each process: the files are the coordinator's alone.
  cluster_.StartCoordinator({"--certs", ca_}, "/proc/self/cwd",
                            CARAVAN_SOURCE_DIR "/models/tiny-r1");
  TestProcess& worker = StartWorker("box-a", Box("box-a"));
  worker.WaitForErr("reading_weights_from_coordinator");
  cluster_.ExpectAnswers();
}

TEST_F(SecurityTest, FilesGoBetweenBoxesTheSameWay) {
  const std::string pack = File("packed");
  ASSERT_EQ(cluster_
                .Launch("pack", {"pack", "--model", CARAVAN_SOURCE_DIR "/models/tiny-r1", "--out",
                                 pack, "--experts", "q4_K", "--dense", "q8_0"})
                .Wait(),
            0);
  cluster_.StartCoordinator({"--certs", ca_}, "/proc/self/cwd", pack);
  StartWorker("box-a", Box("box-a"), {"--model-cache", File("cache-a")}).WaitForErr("stage_ready");
  // What the second fetches only the first has by now.
  for (const std::filesystem::directory_entry& file : std::filesystem::directory_iterator(pack)) {
    if (file.path().extension() == ".bin") std::filesystem::remove(file.path());
  }
  TestProcess& second = StartWorker("box-b", Box("box-b"), {"--model-cache", File("cache-b")});
  second.WaitForErr("stage_ready");
  cluster_.ExpectAnswers();
  EXPECT_THAT(second.Err(), HasSubstr("from=\"worker 1 (box-a): "));
}

TEST_F(SecurityTest, StrangersAreRefusedOnBothSidesAndTheClusterGoesOn) {
  Start();
  const TestProcess& coordinator = cluster_.coordinator();

  const std::string other = File("other");
  Certs({"init", other});
  Certs({"add-box", "box-a", other});
  ExpectRefused(StartWorker("stranger", absl::StrCat(other, "/boxes/box-a")), 1,
                "its certificate is not to be trusted by this end's ca.pem");
  EXPECT_THAT(coordinator.Err(), HasSubstr("handshake_failed why=\"tlsv1 alert unknown ca"));

  // Trusted both ways but for its own certificate.
  std::ofstream(absl::StrCat(other, "/boxes/box-a/ca.pem"), std::ios::app)
      << Slurp(absl::StrCat(ca_, "/ca.pem"));
  ExpectRefused(StartWorker("sly", absl::StrCat(other, "/boxes/box-a")), 1,
                "it does not take this end's certificate");
  EXPECT_THAT(coordinator.Err(), HasSubstr("handshake_failed why=\"certificate verify failed"));

  ExpectRefused(StartWorker("ann", Client()), 2,
                "a certificate of client/ann does not allow the call /caravan.v1.Cluster/Attend");
  EXPECT_THAT(coordinator.Err(), HasSubstr("call_refused call=/caravan.v1.Cluster/Attend"));

  ExpectRefused(cluster_.StartRun("hi", {"--certs", Box("box-a")}), 2,
                "a certificate of worker/box-a does not allow the call /caravan.v1.Jobs/Submit");

  ::unsetenv(kVariable);
  TestProcess& bare = cluster_.StartWorker("bare");
  TestProcess& run = cluster_.StartRun("hi");
  EXPECT_EQ(bare.Wait(), 1);
  EXPECT_EQ(run.Wait(), 1);
  ::setenv(kVariable, Client().c_str(), 1);
  for (const TestProcess* process : {&bare, &run}) {
    EXPECT_THAT(process->Err(), HasSubstr("it has certificates, and this end none: give --certs"));
  }
  EXPECT_THAT(coordinator.Err(), HasSubstr("handshake_failed why=\"wrong version number"));
  cluster_.ExpectAnswers();
}

TEST_F(SecurityTest, AClientWithCertificatesIsToldOfAPlainCoordinator) {
  ::unsetenv(kVariable);
  cluster_.Start(1);
  ExpectRefused(cluster_.StartRun("hi", {"--certs", Client()}), 1, "it answers without TLS");
}

TEST_F(SecurityTest, KeysThatOthersMayReadAreNotUsed) {
  StartCoordinator();
  const std::string key = absl::StrCat(Box("box-a"), "/identity.pem");
  ASSERT_EQ(::chmod(key.c_str(), 0644), 0);
  TestProcess& worker = StartWorker("box-a", Box("box-a"));
  EXPECT_EQ(worker.Wait(), 2);
  EXPECT_THAT(worker.Err(), HasSubstr(absl::StrCat(key, ": others may read")));
}

TEST_F(SecurityTest, NothingThatIsThereIsOverwritten) {
  const std::string before = Slurp(absl::StrCat(ca_, "/ca.key"));
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"certs", "init", ca_}, {"certs", "add-box", "box-a", ca_}}) {
    TestProcess& again = cluster_.Launch("certs", arguments);
    EXPECT_EQ(again.Wait(), 1);
    EXPECT_THAT(again.Err(), HasSubstr("it is there already, and is kept"));
  }
  EXPECT_EQ(Slurp(absl::StrCat(ca_, "/ca.key")), before);
  // Nor is what somebody trusts.
  const std::string trusts = File("trusts");
  std::filesystem::create_directory(trusts);
  std::ofstream(absl::StrCat(trusts, "/ca.pem")) << "another cluster's";
  TestProcess& beside =
      cluster_.Launch("certs", {"certs", "add-box", "box-c", ca_, "--out", trusts});
  EXPECT_EQ(beside.Wait(), 1);
  EXPECT_THAT(beside.Err(), HasSubstr("trusts/ca.pem: it is there already, and is kept"));
  EXPECT_EQ(Slurp(absl::StrCat(trusts, "/ca.pem")), "another cluster's");
  EXPECT_FALSE(std::filesystem::exists(absl::StrCat(trusts, "/identity.pem")));
  EXPECT_THAT(Certs({"show", Box("box-a")}), StartsWith("identity     worker/box-a\n"));
}

TEST_F(SecurityTest, CertificatesAndTheirAuthorityAreExchangedWhileJobsRun) {
  Start();
  TestProcess& undisturbed = cluster_.StartLongRun({"--max-tokens", kSanitized ? "300" : "1500"});
  EXPECT_EQ(undisturbed.Wait(), 0);
  TestProcess& run = cluster_.StartLongRun({"--max-tokens", kSanitized ? "300" : "1500"});

  const std::string next = File("next");
  Certs({"init", next});
  const std::string old_ca = Slurp(absl::StrCat(ca_, "/ca.pem"));
  const std::string new_ca = Slurp(absl::StrCat(next, "/ca.pem"));
  // First everybody trusts both, then shows the new, ...
  std::ofstream(absl::StrCat(next, "/ca.pem")) << new_ca << old_ca;
  const std::vector<std::string> members = {ca_, Box("box-a"), Box("box-b"), Client()};
  for (const std::string& member : members) {
    std::ofstream(absl::StrCat(member, "/ca.pem")) << new_ca << old_ca;
  }
  for (const std::string& member : members) Certs({"renew", member, "--authority", next});
  // ... then trusts it alone. The new box never knew another.
  for (const std::string& member : {ca_, Box("box-a"), Box("box-b"), Client(), next}) {
    std::ofstream(absl::StrCat(member, "/ca.pem")) << new_ca;
  }
  Certs({"add-box", "box-c", next});
  Certs({"add-client", "cat", next});
  ::setenv(kVariable, absl::StrCat(next, "/clients/cat").c_str(), 1);
  cluster_.WaitForStatus("serving");
  StartWorker("box-c", absl::StrCat(next, "/boxes/box-c")).WaitForErr("joined");

  EXPECT_EQ(run.Wait(), 0) << run.Transcript();
  EXPECT_EQ(run.Out(), undisturbed.Out());
  cluster_.ExpectAnswers();
  EXPECT_THAT(cluster_.coordinator().Err(), Not(HasSubstr("worker_lost")));
}

TEST_F(SecurityTest, ABoxJoinsByAToken) {
  StartCoordinator();
  const std::string token(absl::StripSuffix(Certs({"token", "box-c", ca_}), "\n"));
  const std::string mine = File("mine");
  Certs({"join", cluster_.address(), token, mine});
  EXPECT_THAT(cluster_.coordinator().Err(), HasSubstr("enrolled identity=worker/box-c"));
  StartWorker("box-c", mine).WaitForErr("joined");
  cluster_.ExpectAnswers();

  TestProcess& again =
      cluster_.Launch("certs", {"certs", "join", cluster_.address(), token, File("again")});
  EXPECT_EQ(again.Wait(), 2);
  EXPECT_THAT(again.Err(), HasSubstr("the join token is unknown, used or expired"));
  EXPECT_FALSE(std::filesystem::exists(File("again/identity.pem")));

  // What one has is kept, and the token with it.
  const std::string second(absl::StripSuffix(Certs({"token", "box-d", ca_}), "\n"));
  TestProcess& kept = cluster_.Launch("certs", {"certs", "join", cluster_.address(), second, mine});
  EXPECT_EQ(kept.Wait(), 1);
  EXPECT_THAT(kept.Err(), HasSubstr("it is there already"));
  Certs({"join", cluster_.address(), second, File("other-box")});
}

TEST_F(SecurityTest, ATokenIsGoodWhileTheAuthorityIsExchanged) {
  const std::string next = File("next");
  Certs({"init", next});
  const std::string old_ca = Slurp(absl::StrCat(ca_, "/ca.pem"));
  std::ofstream(absl::StrCat(ca_, "/ca.pem")) << Slurp(absl::StrCat(next, "/ca.pem")) << old_ca;
  StartCoordinator();
  const std::string token(absl::StripSuffix(Certs({"token", "box-c", ca_}), "\n"));
  Certs({"join", cluster_.address(), token, File("mine")});
  EXPECT_EQ(Slurp(File("mine/ca.pem")), Slurp(absl::StrCat(ca_, "/ca.pem"))) << "it trusts both";
  StartWorker("box-c", File("mine")).WaitForErr("joined");
}

TEST_F(SecurityTest, MissingCertificatesAreNotFound) {
  for (const char* missing : {"ca.pem", "identity.pem"}) {
    const std::string directory = File(absl::StrCat("without-", missing));
    std::filesystem::copy(Client(), directory);
    std::filesystem::remove(absl::StrCat(directory, "/", missing));
    TestProcess& status = cluster_.Launch("status", {"status", "--certs", directory});
    EXPECT_EQ(status.Wait(), 2);
    EXPECT_THAT(status.Err(), HasSubstr(absl::StrCat(directory, "/", missing)));
  }
}

TEST_F(SecurityTest, ItIsSaidHowLongNewCertificatesAreGood) {
  EXPECT_THAT(Certs({"add-box", "box-c", ca_, "--days", "30"}), EndsWith("; good for 30 days\n"));
  // Ten years, which began when the authority was made.
  EXPECT_THAT(Certs({"add-box", "box-d", ca_, "--days", "3650"}),
              ContainsRegex("; good for 36(49|50) days, when its authority ends too\n$"));
  EXPECT_THAT(Certs({"renew", Box("box-a"), "--authority", ca_, "--days", "10"}),
              ContainsRegex("/identity.pem of worker/box-a: good for 10 days\n"
                            ".*/ca.pem: good for 36(49|50) days\n$"));
}

TEST_F(SecurityTest, AuthoritiesThatEndSoonAreSaidToAndThoseThatAreNotGoodDoNotSign) {
  // As an authority was made `before` ago, for so long.
  const auto authority = [](absl::Duration before, absl::Duration lifetime) {
    return *MakeAuthority({absl::Now() - before, lifetime});
  };
  const auto put = [&](const KeyAndCertificate& signer, const std::string& others) {
    std::ofstream(absl::StrCat(ca_, "/ca.key")) << signer.key_pem;
    std::ofstream(absl::StrCat(ca_, "/ca.pem")) << signer.certificate_pem << others;
  };
  const absl::Duration day = absl::Hours(24);
  const KeyAndCertificate old = authority(3 * day, day);
  put(authority(day, day + absl::Hours(5) + absl::Minutes(30)), old.certificate_pem);
  EXPECT_THAT(
      Certs({"renew", Box("box-a"), "--authority", ca_}),
      ContainsRegex("/identity.pem of worker/box-a: good for 5 hours, when its authority ends too\n"
                    ".*/ca.pem: good for 5 hours and expired\n$"));
  const auto refused = [&](const std::string& why) {
    TestProcess& renewal =
        cluster_.Launch("certs", {"certs", "renew", Box("box-a"), "--authority", ca_});
    EXPECT_NE(renewal.Wait(), 0);
    EXPECT_THAT(renewal.Err(), HasSubstr(absl::StrCat(ca_, "/ca.pem: the authority ", why)));
  };
  put(old, "");
  refused("expired at ");
  put(authority(-day, day), "");
  refused("is valid from ");
}

TEST_F(SecurityTest, RunningProcessesSayThatTheirCertificatesEndSoon) {
  Certs({"renew", ca_, "--days", "10"});
  Certs({"renew", Box("box-a"), "--authority", ca_, "--days", "10"});
  StartCoordinator();
  cluster_.coordinator().WaitForErr("certificate_expires");
  TestProcess& worker = StartWorker("box-a", Box("box-a"));
  worker.WaitForErr("certificate_expires");
}

TEST_F(SecurityTest, ATokenOfAnotherClusterTellsNobodyItsSecret) {
  StartCoordinator();
  const std::string other = File("other");
  Certs({"init", other});
  const std::string token(absl::StripSuffix(Certs({"token", "box-c", other}), "\n"));
  TestProcess& unknown =
      cluster_.Launch("certs", {"certs", "join", cluster_.address(), token, File("mine")});
  EXPECT_EQ(unknown.Wait(), 2);
  EXPECT_THAT(unknown.Err(), HasSubstr("the join token is unknown"));
  // Somebody who stands between may say that he knows it.
  std::filesystem::copy(other + "/tokens", ca_ + "/tokens");
  TestProcess& join =
      cluster_.Launch("certs", {"certs", "join", cluster_.address(), token, File("mine")});
  EXPECT_EQ(join.Wait(), 1);
  EXPECT_THAT(join.Err(), HasSubstr("its authority is not the one that the token names"));
  EXPECT_THAT(cluster_.coordinator().Err(), Not(HasSubstr("enrol")));
}

TEST_F(SecurityTest, WithoutTheAuthoritysKeyNoCertificatesAreHandedOut) {
  const std::string key = absl::StrCat(ca_, "/ca.key");
  const std::string token(absl::StripSuffix(Certs({"token", "box-c", ca_}), "\n"));
  std::filesystem::rename(key, File("elsewhere.key"));
  StartCoordinator();
  TestProcess& join =
      cluster_.Launch("certs", {"certs", "join", cluster_.address(), token, File("mine")});
  EXPECT_EQ(join.Wait(), 1);
  EXPECT_THAT(join.Err(), HasSubstr("it hands out no certificates"));
}

TEST(InsecureTest, IsSaidAloud) {
  TestCluster cluster;
  cluster.StartCoordinator({"--listen", "0.0.0.0:0", "--insecure"});
  EXPECT_THAT(cluster.coordinator().Err(), HasSubstr("WARNING insecure"));
}

}  // namespace
}  // namespace caravan
