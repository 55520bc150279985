#ifndef CARAVAN_TESTS_SUPPORT_TEMP_DIR_H_
#define CARAVAN_TESTS_SUPPORT_TEMP_DIR_H_

// A directory of a test's own.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "gtest/gtest.h"

namespace caravan {

/// Empty when made; removed with all it holds on destruction.
class TempDir {
 public:
  // A path without doubled slashes, as programs print paths that they have made absolute.
  TempDir() : path_((std::filesystem::path(::testing::TempDir()) / "caravan-XXXXXX").string()) {
    CARAVAN_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

  /// Writes a file and returns its path.
  std::string Write(const std::string& name, absl::string_view bytes) const {
    std::ofstream out(File(name), std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    CARAVAN_CHECK(out.good());
    return File(name);
  }

 private:
  std::string path_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_TEMP_DIR_H_
