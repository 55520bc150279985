#include "tests/support/box_network.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "base/subprocess.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

/// Where an ordinary user's PATH does not lead.
std::vector<std::string> WithPath(const std::vector<std::string>& command) {
  std::vector<std::string> all = {"/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

/// Runs one `ip` or `tc`, its words separated by single spaces.
absl::Status Run(const std::string& command) {
  const TempDir dir;
  Subprocess::Options options;
  options.command = WithPath(absl::StrSplit(command, ' '));
  options.stdout_path = dir.File("out");
  options.stderr_path = options.stdout_path;
  CARAVAN_ASSIGN_OR_RETURN(Subprocess process, Subprocess::Start(options));
  if (process.Wait() == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(command, ": ", Slurp(options.stdout_path)));
}

absl::Status RunAll(const std::vector<std::string>& commands) {
  for (const std::string& command : commands) CARAVAN_RETURN_IF_ERROR(Run(command));
  return absl::OkStatus();
}

void MustRun(const std::vector<std::string>& commands) {
  const absl::Status status = RunAll(commands);
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace

BoxNetwork::BoxNetwork(int num_boxes)
    : num_boxes_(num_boxes), prefix_(absl::StrCat("caravan-", ::getpid())) {}

BoxNetwork::~BoxNetwork() {
  // Those that were not made are no loss.
  for (int box = 0; box < num_boxes_; ++box)
    Run(absl::StrCat("ip netns del ", Name(box))).IgnoreError();
  Run(absl::StrCat("ip netns del ", prefix_, "-hub")).IgnoreError();
}

absl::StatusOr<std::unique_ptr<BoxNetwork>> BoxNetwork::Create(int num_boxes) {
  std::unique_ptr<BoxNetwork> network(new BoxNetwork(num_boxes));
  CARAVAN_RETURN_IF_ERROR(network->Build());
  return network;
}

absl::Status BoxNetwork::Build() {
  const std::string hub = absl::StrCat(prefix_, "-hub");
  CARAVAN_RETURN_IF_ERROR(RunAll({
      absl::StrCat("ip netns add ", hub),
      absl::StrCat("ip -n ", hub, " link add bridge type bridge"),
      absl::StrCat("ip -n ", hub, " link set bridge up"),
  }));
  for (int box = 0; box < num_boxes_; ++box) CARAVAN_RETURN_IF_ERROR(Add(box));
  // Some kernels have no shaper.
  const std::string shaper = absl::StrCat("tc -n ", Name(0), " qdisc");
  return RunAll({absl::StrCat(shaper, " add dev eth0 root tbf rate 1mbit burst 16kb latency 1s"),
                 absl::StrCat(shaper, " del dev eth0 root")});
}

absl::Status BoxNetwork::Add(int box) {
  const std::string hub = absl::StrCat(prefix_, "-hub");
  const std::string name = Name(box);
  const std::string port = absl::StrCat("port", box);
  // The same hardware address when it comes back: others know it by that for a while.
  const std::string hardware = absl::StrCat("02:00:0a:4d:00:", absl::Hex(box + 1, absl::kZeroPad2));
  return RunAll({
      absl::StrCat("ip netns add ", name),
      absl::StrCat("ip -n ", hub, " link add ", port, " type veth peer name eth0 netns ", name),
      absl::StrCat("ip -n ", hub, " link set ", port, " master bridge up"),
      absl::StrCat("ip -n ", name, " link set eth0 address ", hardware, " up"),
      absl::StrCat("ip -n ", name, " link set lo up"),
      absl::StrCat("ip -n ", name, " address add ", host(box), "/24 dev eth0"),
  });
}

std::string BoxNetwork::Name(int box) const { return absl::StrCat(prefix_, "-", box); }

std::string BoxNetwork::host(int box) const { return absl::StrCat("10.77.0.", box + 1); }

std::vector<std::string> BoxNetwork::Enter(int box) const {
  return WithPath({"ip", "netns", "exec", Name(box)});
}

void BoxNetwork::Unplug(int box) {
  MustRun({absl::StrCat("ip -n ", prefix_, "-hub link set port", box, " down")});
}

void BoxNetwork::Plug(int box) {
  MustRun({absl::StrCat("ip -n ", prefix_, "-hub link set port", box, " up")});
}

void BoxNetwork::Shape(int box, int64_t kbit_per_s) {
  const std::string shaper =
      absl::StrCat("root tbf rate ", kbit_per_s, "kbit burst 4kb latency 1s");
  MustRun({absl::StrCat("tc -n ", Name(box), " qdisc add dev eth0 ", shaper),
           absl::StrCat("tc -n ", prefix_, "-hub qdisc add dev port", box, " ", shaper)});
}

void BoxNetwork::Unshape(int box) {
  MustRun({absl::StrCat("tc -n ", Name(box), " qdisc del dev eth0 root"),
           absl::StrCat("tc -n ", prefix_, "-hub qdisc del dev port", box, " root")});
}

void BoxNetwork::Replace(int box) {
  // The namespace may outlive its name for a moment; its cable's end must not.
  MustRun({absl::StrCat("ip -n ", prefix_, "-hub link del port", box),
           absl::StrCat("ip netns del ", Name(box))});
  const absl::Status added = Add(box);
  EXPECT_TRUE(added.ok()) << added;
}

}  // namespace caravan
