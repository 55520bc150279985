#include "cluster/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/int_math.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

/// The text of a kernel's file, whose size is not known before; empty when there is none.
std::string ReadKernelFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// The number in a file that holds one; nullopt when there is none ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(ReadKernelFile(path), &value)) return std::nullopt;
  return value;
}

/// The number after `key` in lines of "key value [unit]".
std::optional<int64_t> FindNumber(absl::string_view text, absl::string_view key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t value = 0;
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &value)) return value;
  }
  return std::nullopt;
}

/// The directories that hold this process's limits of one kind, from its own cgroup up to the top.
/// `controller` is v1's name; v2 has one tree for all, and no name. In a container the paths of
/// /proc/self/cgroup may be the host's: then only the top exists here.
std::vector<std::string> CgroupDirectories(const std::string& root, absl::string_view controller) {
  const std::string mount = JoinPath(JoinPath(root, "sys/fs/cgroup"), controller);
  std::vector<std::string> directories;
  for (const absl::string_view line :
       absl::StrSplit(ReadKernelFile(JoinPath(root, "proc/self/cgroup")), '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end())
      continue;
    for (absl::string_view path = fields[2]; path.size() > 1;
         path = path.substr(0, path.rfind('/'))) {
      directories.push_back(absl::StrCat(mount, path));
    }
  }
  directories.push_back(mount);
  return directories;
}

/// Lowers the machine's memory to what one cgroup leaves. Its page cache that is not in use can be
/// taken back, so it does not count as used.
void ApplyMemoryLimit(std::optional<int64_t> limit, std::optional<int64_t> used,
                      std::optional<int64_t> reclaimable, Machine& machine) {
  if (!limit.has_value()) return;
  machine.memory_bytes = std::min(machine.memory_bytes, *limit);
  const int64_t in_use = std::max<int64_t>(0, used.value_or(0) - reclaimable.value_or(0));
  machine.available_memory_bytes =
      std::min(machine.available_memory_bytes, std::max<int64_t>(0, *limit - in_use));
}

/// Lowers the cores to a quota of `quota` microseconds in each `period`, rounded up.
void ApplyCpuQuota(int64_t quota, int64_t period, Machine& machine) {
  if (quota <= 0 || period <= 0) return;
  const int64_t cores = CeilDiv(quota, period);
  machine.num_cores = static_cast<int>(std::min<int64_t>(machine.num_cores, cores));
}

int CoresOfAffinity() {
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof(cores), &cores) == 0) return CPU_COUNT(&cores);
  return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
}

}  // namespace

int64_t DefaultWorkerMemory(const Machine& machine) {
  constexpr double kShare = 0.8;
  return static_cast<int64_t>(kShare * static_cast<double>(machine.available_memory_bytes));
}

absl::StatusOr<Machine> ProbeMachine(const std::string& root) {
  Machine machine;
  char host_name[256] = "";
  ::gethostname(host_name, sizeof(host_name) - 1);
  machine.host_name = host_name;
  machine.boot_id = std::string(
      absl::StripAsciiWhitespace(ReadKernelFile(JoinPath(root, "proc/sys/kernel/random/boot_id"))));
  machine.num_cores = CoresOfAffinity();

  const std::string meminfo_path = JoinPath(root, "proc/meminfo");
  const std::string meminfo = ReadKernelFile(meminfo_path);
  const std::optional<int64_t> total_kib = FindNumber(meminfo, "MemTotal:");
  const std::optional<int64_t> available_kib = FindNumber(meminfo, "MemAvailable:");
  if (!total_kib.has_value() || !available_kib.has_value()) {
    return absl::UnavailableError(
        absl::StrCat(meminfo_path, ": MemTotal or MemAvailable is missing"));
  }
  machine.memory_bytes = *total_kib * 1024;
  machine.available_memory_bytes = *available_kib * 1024;

  for (const std::string& group : CgroupDirectories(root, "")) {
    ApplyMemoryLimit(
        ReadNumber(JoinPath(group, "memory.max")), ReadNumber(JoinPath(group, "memory.current")),
        FindNumber(ReadKernelFile(JoinPath(group, "memory.stat")), "inactive_file"), machine);
    const std::string cpu_max = ReadKernelFile(JoinPath(group, "cpu.max"));
    const std::vector<absl::string_view> quota =
        absl::StrSplit(cpu_max, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    int64_t quota_us = 0;
    int64_t period_us = 0;
    if (quota.size() == 2 && absl::SimpleAtoi(quota[0], &quota_us) &&
        absl::SimpleAtoi(quota[1], &period_us)) {
      ApplyCpuQuota(quota_us, period_us, machine);
    }
  }
  for (const std::string& group : CgroupDirectories(root, "memory")) {
    ApplyMemoryLimit(
        ReadNumber(JoinPath(group, "memory.limit_in_bytes")),
        ReadNumber(JoinPath(group, "memory.usage_in_bytes")),
        FindNumber(ReadKernelFile(JoinPath(group, "memory.stat")), "total_inactive_file"), machine);
  }
  for (const std::string& group : CgroupDirectories(root, "cpu")) {
    ApplyCpuQuota(ReadNumber(JoinPath(group, "cpu.cfs_quota_us")).value_or(0),
                  ReadNumber(JoinPath(group, "cpu.cfs_period_us")).value_or(0), machine);
  }
  return machine;
}

}  // namespace caravan
