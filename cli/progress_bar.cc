#include "cli/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"

namespace caravan {
namespace {

constexpr int kBarCells = 30;

}  // namespace

void ProgressBar::Show(int64_t done, int64_t total) {
  const std::string line = Line(done, total);
  const bool ended = done >= total;
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (!terminal && !ended) return;
  // \033[K clears what a longer line before left.
  std::fprintf(stderr, terminal ? "\r%s\033[K%s" : "%s%s", line.c_str(), ended ? "\n" : "");
  std::fflush(stderr);
  line_begun_ = terminal && !ended;
}

std::string ProgressBar::Line(int64_t done, int64_t total) {
  const absl::Duration now = clock_.Now();
  if (!started_ || done < last_done_) {
    start_ = now;
    first_done_ = done;
  }
  last_done_ = done;
  const bool ended = done >= total;
  started_ = !ended;

  const double share = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  // At least a microsecond, so that a tiny model has a rate.
  const double elapsed_s = std::max(1e-6, absl::ToDoubleSeconds(now - start_));
  const double rate = static_cast<double>(done - first_done_) / elapsed_s;
  const int filled = static_cast<int>(share * kBarCells);
  std::string line = absl::StrFormat(
      "%s [%s%s] %3d%%  %s of %s, %s/s", label_, std::string(static_cast<size_t>(filled), '#'),
      std::string(static_cast<size_t>(kBarCells - filled), '.'), static_cast<int>(100 * share),
      DescribeDone(done), Describe(static_cast<double>(total)), Describe(rate));
  if (!ended && done > first_done_) {
    absl::StrAppendFormat(&line, ", %.0f s left", static_cast<double>(total - done) / rate);
  }
  return line;
}

void ProgressBar::Break() {
  if (std::exchange(line_begun_, false)) std::fputc('\n', stderr);
}

std::string ProgressBar::DescribeDone(int64_t done) const {
  return unit_ == Unit::kBytes ? FormatByteSize(done) : absl::StrCat(done);
}

std::string ProgressBar::Describe(double units) const {
  if (unit_ == Unit::kBytes) return FormatByteSize(static_cast<int64_t>(units));
  // Few a second are told to a tenth.
  const bool whole = units >= 100 || units == static_cast<double>(static_cast<int64_t>(units));
  return absl::StrFormat("%.*f %s", whole ? 0 : 1, units,
                         unit_ == Unit::kLines ? "lines" : "tokens");
}

}  // namespace caravan
