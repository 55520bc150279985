// caravan probe link between real processes: over the loopback interface, and over links whose rate
// is known, as they are made for it.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <csignal>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/open_file.h"
#include "base/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/sanitized.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// What comes between two words of a text.
std::string Between(const std::string& text, const std::string& begin, const std::string& end) {
  const std::vector<std::string> rest = absl::StrSplit(text, absl::MaxSplits(begin, 1));
  if (rest.size() < 2) return "";
  const std::vector<std::string> parts = absl::StrSplit(rest[1], absl::MaxSplits(end, 1));
  return parts[0];
}

/// A far end; its address.
std::pair<TestProcess*, std::string> Listen(TestCluster& cluster) {
  TestProcess& listener = cluster.Launch("listen", {"probe", "listen", "127.0.0.1:0"});
  listener.WaitForOut("until interrupted");
  return {&listener, Between(listener.Out(), "listening on ", " ")};
}

/// A port of its own on the loopback interface.
class BoundSocket {
 public:
  BoundSocket() : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in name = {};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(name);
    auto* const address = reinterpret_cast<sockaddr*>(&name);
    CARAVAN_CHECK(::bind(fd_.get(), address, size) == 0);
    CARAVAN_CHECK(::getsockname(fd_.get(), address, &size) == 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(name.sin_port));
  }

  int fd() const { return fd_.get(); }
  const std::string& address() const { return address_; }

 private:
  const FileDescriptor fd_;
  std::string address_;
};

/// Probes for a moment, and expects that to go well.
nlohmann::json Probe(TestCluster& cluster, const std::string& address) {
  TestProcess& probe = cluster.Launch(
      "link", {"probe", "link", address, "--seconds", "0.05", "--json", "--activations", "1KiB"});
  EXPECT_EQ(probe.Wait(), 0) << probe.Transcript();
  return nlohmann::json::parse(probe.Out(), nullptr, /*allow_exceptions=*/false);
}

void ExpectRates(const nlohmann::json& link) {
  for (const auto& [name, bytes] : {std::pair{"small", 1}, std::pair{"activations", 1024}}) {
    const nlohmann::json& trips = link.at("round_trips").at(name);
    EXPECT_EQ(trips.at("bytes"), bytes);
    EXPECT_GE(trips.at("count"), 10);
    EXPECT_GT(trips.at("median_seconds"), 0);
    EXPECT_GE(trips.at("p99_seconds"), trips.at("median_seconds"));
  }
  EXPECT_GT(link.at("to_bytes_per_second"), 0);
  EXPECT_GT(link.at("from_bytes_per_second"), 0);
}

TEST(ProbeLinkTest, MeasuresToAListenerThatEndsWhenInterrupted) {
  TestCluster cluster;
  const auto [listener, address] = Listen(cluster);
  const nlohmann::json link = Probe(cluster, address);
  EXPECT_EQ(link.at("address"), address);
  ExpectRates(link);
  TestProcess& table = cluster.Launch("table", {"probe", "link", address, "--seconds", "0.05"});
  EXPECT_EQ(table.Wait(), 0) << table.Transcript();
  EXPECT_THAT(table.Out(), HasSubstr("28672 bytes each way"));
  listener->Signal(SIGINT);
  EXPECT_EQ(listener->Wait(), 0) << listener->Transcript();
}

TEST(ProbeLinkTest, CoordinatorsAndWorkersAnswerToo) {
  TestCluster cluster;
  cluster.StartCoordinator({"--workers", "2"});
  ExpectRates(Probe(cluster, cluster.address()));
  // Free a moment ago; nobody tells which port a worker takes of itself.
  const std::string address = BoundSocket().address();
  cluster.StartWorker("box-0", {"--listen", address}).WaitForErr("joined");
  ExpectRates(Probe(cluster, address));
}

TEST(ProbeLinkTest, SaysInASentenceThatNobodyCanBeProbedThere) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  const auto [listener, address] = Listen(cluster);
  listener->Signal(SIGTERM);
  EXPECT_EQ(listener->Wait(), 0);
  struct Case {
    std::string address;
    int exit_code;
    std::string says;
  };
  const std::vector<Case> cases = {
      {"nonsense", 2, "\"nonsense\" is not HOST:PORT"},
      {address, 3, absl::StrCat("nobody who can be probed answers at ", address, ": ")},
      // It speaks HTTP/1.1.
      {cluster.http_address(), 3,
       absl::StrCat("nobody who can be probed answers at ", cluster.http_address(), ": ")},
      {"nowhere.invalid:7071", 3, "nobody who can be probed answers at nowhere.invalid:7071: "},
  };
  for (const Case& wrong : cases) {
    TestProcess& probe = cluster.Launch("wrong", {"probe", "link", wrong.address});
    EXPECT_EQ(probe.Wait(), wrong.exit_code) << probe.Transcript();
    EXPECT_THAT(probe.Err(), HasSubstr(wrong.says));
    EXPECT_EQ(probe.Out(), "");
  }
}

TEST(ProbeLinkTest, GivesUpOnWhoNeverAnswersAndStopsWhenInterrupted) {
  TestCluster cluster;
  const BoundSocket mute;
  // Connections are made by the kernel, and nobody takes them.
  ASSERT_EQ(::listen(mute.fd(), 1), 0);
  TestProcess& patient =
      cluster.Launch("mute", {"probe", "link", mute.address(), "--connect-timeout", "0.2"});
  EXPECT_EQ(patient.Wait(), 3) << patient.Transcript();
  EXPECT_THAT(patient.Err(),
              HasSubstr(absl::StrCat("answers at ", mute.address(), " within 200ms")));

  const auto [listener, far] = Listen(cluster);
  TestProcess& stopped = cluster.Launch("stopped", {"probe", "link", far, "--seconds", "10"});
  stopped.WaitForErr("measuring");
  stopped.Signal(SIGINT);
  EXPECT_EQ(stopped.Wait(), 130) << stopped.Transcript();
  EXPECT_THAT(stopped.Err(), HasSubstr("measuring was stopped"));
  EXPECT_EQ(stopped.Out(), "");
}

// --- over links of a known rate ------------------------------------------------------------------

/// Two network namespaces, joined by a link that lets RATE through each way; in the one a listener,
/// in the other the probe. Arguments: RATE as tc says it, the caravan binary.
constexpr char kShapedProbe[] = R"sh(
set -e
unshare --net sleep 600 &
far=$!
trap 'kill $far' EXIT
while [ "$(readlink /proc/$far/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
there="nsenter --net=/proc/$far/ns/net"
ip link add near type veth peer name far netns $far
ip address add 10.77.0.1/30 dev near
ip link set near up
$there ip address add 10.77.0.2/30 dev far
$there ip link set far up
tc qdisc add dev near root tbf rate $1 burst 128kb latency 50ms
$there tc qdisc add dev far root tbf rate $1 burst 128kb latency 50ms
$there "$2" probe listen --insecure 10.77.0.2:7071 >listen.out &
listener=$!
trap 'kill $listener $far' EXIT
until grep -q listening listen.out; do sleep 0.01; done
"$2" probe link 10.77.0.2:7071 --json --seconds 1
)sh";

/// Errors: this process may not make network namespaces, or has not the tools; or of the probe.
absl::StatusOr<nlohmann::json> ProbeShaped(const std::string& rate, const TempDir& dir) {
  Subprocess::Options options;
  options.command = {"/usr/bin/env", "-C", dir.path(), "unshare",    "--user", "--map-root-user",
                     "--net",        "sh", "-c",       kShapedProbe, "sh",     rate,
                     CARAVAN_BINARY};
  options.stdout_path = dir.File("out");
  options.stderr_path = dir.File("err");
  absl::StatusOr<Subprocess> process = Subprocess::Start(options);
  if (!process.ok()) return process.status();
  const std::optional<int> code = process->Wait(kTestDeadline);
  if (code != 0) return absl::UnavailableError(Slurp(dir.File("err")));
  return nlohmann::json::parse(Slurp(dir.File("out")), nullptr, /*allow_exceptions=*/false);
}

/// Whether links can be shaped here. Their failure is then the probe's.
bool CanShape() {
  Subprocess::Options options;
  options.command = {"/usr/bin/env",
                     "unshare",
                     "--user",
                     "--map-root-user",
                     "--net",
                     "sh",
                     "-c",
                     "ip link add a0 type veth peer name b0 && "
                     "tc qdisc add dev a0 root tbf rate 1mbit burst 32kb latency 50ms"};
  absl::StatusOr<Subprocess> process = Subprocess::Start(options);
  return process.ok() && process->Wait(kTestDeadline) == 0;
}

TEST(ProbeLinkTest, ReportsTheRateOfAShapedLink) {
  if (!CanShape()) GTEST_SKIP() << "no network namespaces, or no ip and tc, for this process";
  for (const int mbit : {10, 100, 1000}) {
    const TempDir dir;
    const absl::StatusOr<nlohmann::json> link = ProbeShaped(absl::StrCat(mbit, "mbit"), dir);
    ASSERT_TRUE(link.ok()) << mbit << ": " << link.status();
    // Of a frame of 1514 bytes 1448 are payload of TCP. The bounds are for retransmissions, and for
    // processes that share their cores with others: who is held up before it counts the first
    // message of a slow link finds the others there already.
    const double shaped = 1e6 / 8 * mbit;
    for (const char* const rate : {"to_bytes_per_second", "from_bytes_per_second"}) {
      const double measured = link->at(rate);
      EXPECT_LT(measured, 1.15 * shaped) << rate << " " << *link;
      if (mbit <= 100 || !kSanitized) {
        EXPECT_GT(measured, 0.75 * shaped) << rate << " " << *link;
      }
    }
    // Each way takes 28 KiB a trip, and while the other way is taken, what a burst may take is
    // saved up. So it is on a fast link while a process waits for its core, which is no news of it.
    if (mbit > 100) continue;
    const nlohmann::json& trips = link->at("round_trips");
    const double way = 28672 / shaped;  // seconds
    EXPECT_GT(trips.at("activations").at("median_seconds"), 0.9 * way) << *link;
    EXPECT_LT(trips.at("small").at("median_seconds"), trips.at("activations").at("median_seconds"))
        << *link;
  }
}

}  // namespace
}  // namespace caravan
