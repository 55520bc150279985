#include "cli/fio.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "base/subprocess.h"
#include "nlohmann/json.hpp"

namespace caravan {

absl::Status CheckFio() {
  const char* const path = std::getenv("PATH");
  for (const absl::string_view directory :
       absl::StrSplit(path == nullptr ? "" : path, ':', absl::SkipEmpty())) {
    if (::access(absl::StrCat(directory, "/fio").c_str(), X_OK) == 0) return absl::OkStatus();
  }
  return absl::NotFoundError("fio is not on PATH: apt-get install fio");
}

absl::StatusOr<double> MeasureFioRate(const DirectFile& file, const ReadLoad& load,
                                      bool large_pages, const std::string& report) {
  constexpr int64_t kMostReport = int64_t{1} << 20;  // bytes
  const int64_t pieces = std::max<int64_t>(1, load.read_bytes / load.queue.piece_bytes);
  Subprocess::Options options;
  options.command = {
      // fio 3.33 knows no option for transparent large pages; the C library does.
      "/usr/bin/env", absl::StrCat("GLIBC_TUNABLES=", large_pages ? "glibc.malloc.hugetlb=1" : ""),
      "fio", "--name=experts", "--readonly",
      // The file may have no name of its own.
      absl::StrCat("--filename=/proc/", ::getpid(), "/fd/", file.fd()),
      absl::StrCat("--size=", file.bytes()),
      // So many pieces one after the other, then from another place.
      absl::StrCat("--rw=randread:", pieces), absl::StrCat("--bs=", load.queue.piece_bytes),
      absl::StrCat("--iodepth=", load.queue.depth), "--ioengine=io_uring", "--direct=1",
      "--fixedbufs=1", "--registerfiles=1", "--norandommap", "--randrepeat=0", "--time_based",
      "--ramp_time=200ms",
      absl::StrCat("--runtime=", absl::ToInt64Milliseconds(load.duration), "ms"),
      "--output-format=json"};
  options.stdout_path = report;
  options.stderr_path = report + ".err";
  const auto remove = absl::MakeCleanup([&options] {
    std::error_code ignored;
    std::filesystem::remove(options.stdout_path, ignored);
    std::filesystem::remove(options.stderr_path, ignored);
  });
  CARAVAN_ASSIGN_OR_RETURN(Subprocess fio, Subprocess::Start(options));
  if (fio.Wait() != 0) {
    CARAVAN_ASSIGN_OR_RETURN(const std::string errors, ReadFile(options.stderr_path, kMostReport));
    CARAVAN_ASSIGN_OR_RETURN(const std::string said, ReadFile(report, kMostReport));
    return absl::InternalError(absl::StrCat("fio failed: ", errors, said));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(report, kMostReport));
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, report));
  const nlohmann::json::json_pointer rate("/jobs/0/read/bw_bytes");
  if (!json.contains(rate) || !json.at(rate).is_number()) {
    return absl::InternalError(absl::StrCat("fio's report tells no rate: ", text));
  }
  return 1e-9 * json.at(rate).get<double>();
}

}  // namespace caravan
