#ifndef CARAVAN_TESTS_SUPPORT_MEMORY_CGROUP_H_
#define CARAVAN_TESTS_SUPPORT_MEMORY_CGROUP_H_

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace caravan {

/// A limit of memory for processes that enter it, page cache and the kernel's own for them
/// included. Past it they give up page cache, and where that is not enough, one is killed. Its
/// directory goes with it: they must have ended.
class MemoryCgroup {
 public:
  /// Null where this process may not make one.
  static std::unique_ptr<MemoryCgroup> Make(int64_t limit_bytes) {
    // Version 1, then 2.
    for (const auto& [root, limit] : {std::pair{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
                                      std::pair{"/sys/fs/cgroup", "memory.max"}}) {
      const std::string path = absl::StrCat(root, "/caravan-test-", ::getpid());
      if (::mkdir(path.c_str(), 0755) != 0) continue;
      std::unique_ptr<MemoryCgroup> made(new MemoryCgroup(path));
      std::ofstream file(absl::StrCat(path, "/", limit), std::ios::in);
      file << limit_bytes << std::flush;
      if (file.good()) return made;
    }
    return nullptr;
  }
  ~MemoryCgroup() { ::rmdir(path_.c_str()); }
  MemoryCgroup(const MemoryCgroup&) = delete;
  MemoryCgroup& operator=(const MemoryCgroup&) = delete;

  /// Whoever writes its process id there enters.
  std::string entrance() const { return path_ + "/cgroup.procs"; }

 private:
  explicit MemoryCgroup(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_MEMORY_CGROUP_H_
