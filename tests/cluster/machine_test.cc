#include "cluster/machine.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

/// A directory that looks like a machine of 64 GiB of which 48 are available.
class MachineTest : public ::testing::Test {
 protected:
  MachineTest()
      : root_(JoinPath(::testing::TempDir(),
                       ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(root_);
    Write("proc/meminfo",
          "MemTotal:       67108864 kB\nMemFree:        1024 kB\nMemAvailable:   50331648 kB\n");
  }
  ~MachineTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = JoinPath(root_, path);
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }

  Machine Probe() {
    absl::StatusOr<Machine> machine = ProbeMachine(root_);
    EXPECT_TRUE(machine.ok()) << machine.status();
    return machine.value_or(Machine());
  }

  const std::string root_;
};

TEST(ProbeMachineTest, DescribesTheMachineOfThisTest) {
  const absl::StatusOr<Machine> machine = ProbeMachine();
  ASSERT_TRUE(machine.ok()) << machine.status();
  EXPECT_FALSE(machine->host_name.empty());
  EXPECT_GE(machine->num_cores, 1);
  EXPECT_GT(machine->memory_bytes, 0);
  EXPECT_GE(machine->available_memory_bytes, 0);
  EXPECT_LE(machine->available_memory_bytes, machine->memory_bytes);
}

TEST_F(MachineTest, ReadsMeminfo) {
  const Machine machine = Probe();
  EXPECT_EQ(machine.memory_bytes, 64 * kGiB);
  EXPECT_EQ(machine.available_memory_bytes, 48 * kGiB);
}

TEST_F(MachineTest, SaysWhichFileItCannotUse) {
  for (const char* text : {"", "MemTotal: 5 kB\n", "MemTotal: many kB\nMemAvailable: 5 kB\n"}) {
    Write("proc/meminfo", text);
    const absl::Status status = ProbeMachine(root_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << text;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("proc/meminfo"));
  }
}

TEST_F(MachineTest, KeepsWithinTheTightestCgroupOfVersionTwo) {
  Write("proc/self/cgroup", "0::/slice/box.scope\n");
  Write("sys/fs/cgroup/slice/box.scope/memory.max", "max\n");
  Write("sys/fs/cgroup/slice/box.scope/cpu.max", "max 100000\n");
  Write("sys/fs/cgroup/slice/memory.max", "8589934592\n");
  Write("sys/fs/cgroup/slice/memory.current", "5368709120\n");                     // 5 GiB
  Write("sys/fs/cgroup/slice/memory.stat", "anon 1\ninactive_file 1073741824\n");  // 1 GiB
  Write("sys/fs/cgroup/slice/cpu.max", "50000 100000\n");
  const Machine machine = Probe();
  EXPECT_EQ(machine.memory_bytes, 8 * kGiB);
  EXPECT_EQ(machine.available_memory_bytes, 4 * kGiB);
  EXPECT_EQ(machine.num_cores, 1);  // half a core
}

TEST_F(MachineTest, KeepsWithinACgroupOfVersionOne) {
  Write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/job/7\n1:cpu,cpuacct:/job\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "17179869184\n");
  Write("sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", "4294967296\n");
  Write("sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", "1073741824\n");
  Write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "100000\n");
  Write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  const Machine machine = Probe();
  EXPECT_EQ(machine.memory_bytes, 4 * kGiB);
  EXPECT_EQ(machine.available_memory_bytes, 3 * kGiB);
  EXPECT_EQ(machine.num_cores, 1);
}

TEST_F(MachineTest, IgnoresCgroupsWithoutLimits) {
  Write("proc/self/cgroup", "4:memory:/\n1:cpu:/\n0::/\n");
  Write("sys/fs/cgroup/memory.max", "max\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  const Machine machine = Probe();
  EXPECT_EQ(machine.memory_bytes, 64 * kGiB);
  EXPECT_EQ(machine.available_memory_bytes, 48 * kGiB);
  EXPECT_EQ(machine.num_cores, ProbeMachine()->num_cores);
}

}  // namespace
}  // namespace caravan
