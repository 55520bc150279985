#include "base/peak_memory.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace caravan {

int64_t ProcessMemory(pid_t pid, absl::string_view counter) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == absl::StrCat(counter, ":") && status >> kib) return kib * 1024;
  }
  return -1;
}

// Not getrusage's, which begins with what the process was before exec.
int64_t PeakMemory(pid_t pid) { return ProcessMemory(pid, "VmHWM"); }

}  // namespace caravan
