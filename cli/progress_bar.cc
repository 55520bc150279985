#include "cli/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"

namespace caravan {
namespace {

constexpr int kBarCells = 30;

}  // namespace

void ProgressBar::Show(int64_t done_bytes, int64_t total_bytes) {
  const absl::Duration now = SteadyClock().Now();
  if (done_bytes == 0) started_ = now;
  const bool ended = done_bytes >= total_bytes;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (!terminal && !ended) return;

  const double share =
      total_bytes == 0 ? 1.0 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  // At least a microsecond, so that a tiny model has a rate.
  const double elapsed_s = std::max(1e-6, absl::ToDoubleSeconds(now - started_));
  const double rate = static_cast<double>(done_bytes) / elapsed_s;
  const int filled = static_cast<int>(share * kBarCells);
  std::string line = absl::StrFormat(
      "%s [%s%s] %3d%%  %s of %s, %s/s", label_, std::string(static_cast<size_t>(filled), '#'),
      std::string(static_cast<size_t>(kBarCells - filled), '.'), static_cast<int>(100 * share),
      FormatByteSize(done_bytes), FormatByteSize(total_bytes),
      FormatByteSize(static_cast<int64_t>(rate)));
  if (!ended && done_bytes > 0) {
    absl::StrAppendFormat(&line, ", %.0f s left",
                          static_cast<double>(total_bytes - done_bytes) / rate);
  }
  // \033[K clears what a longer line before left.
  std::fprintf(stderr, terminal ? "\r%s\033[K%s" : "%s%s", line.c_str(), ended ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace caravan
