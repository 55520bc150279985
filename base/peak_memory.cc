#include "base/peak_memory.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace caravan {

int64_t PeakMemory(pid_t pid) {
  // Not getrusage's, which begins with what the process was before exec.
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * 1024;
  }
  return -1;
}

}  // namespace caravan
