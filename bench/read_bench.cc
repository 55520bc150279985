// Reads of experts through ReadQueue, beside fio's of the same file: runs of 24 MiB from random
// places, past the page cache, by io_uring, in pieces of several sizes and with several numbers of
// them under way.
//
//   read_bench [--dir DIR] [--size 4GiB] [--seconds 1] [--rounds 5] [--alone]
//
// fio (Debian's package) must be there, but for --alone. It runs twice, with memory as malloc gives
// it and in large pages as our reads have it: of 4 KiB pages a disk's driver must be told one by
// one, and what it can be told at once has a limit. Shares are of the second. All take turns,
// --rounds times; medians count. Everything else that the machine does shows in the figures, so
// look at the spread too.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/buffer.h"
#include "base/byte_size.h"
#include "base/file.h"
#include "base/io/direct_file.h"
#include "base/io/read_rate.h"
#include "bench/must_be.h"
#include "cli/disk_probe.h"
#include "cli/fio.h"

namespace caravan {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
/// An expert of R1 at 4.5 bits a weight.
constexpr int64_t kExpertBytes = 24 * kMiB;
constexpr int64_t kPieceBytes[] = {kMiB / 2, kMiB, 2 * kMiB, 4 * kMiB};
constexpr int kDepths[] = {4, 8, 16, 32};

/// One setting's results, a value a turn.
struct Setting {
  ReadLoad load;
  // GB/s
  std::vector<double> fio_small_pages;
  std::vector<double> fio;
  std::vector<double> ours;
  std::vector<double> shares;  // ours of fio's beside it
};

double Quantile(std::vector<double> values, double quantile) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(quantile * static_cast<double>(values.size() - 1) + 0.5)];
}

std::string Range(const std::vector<double>& values) {
  if (values.empty()) return "-";
  return absl::StrFormat("%.2f (%.2f to %.2f)", Quantile(values, 0.5), Quantile(values, 0),
                         Quantile(values, 1));
}

void Print(const DirectFile& file, const std::string& engine, int rounds,
           const std::vector<Setting>& settings) {
  std::printf(
      "runs of %s from random places of a file of %s, %s; ReadQueue by %s; %d turns; GB/s, "
      "medians and ranges\n\n| pieces | under way | fio, 4 KiB pages | fio | Caravan | share |\n"
      "|---|---|---|---|---|---|\n",
      FormatByteSize(kExpertBytes).c_str(), FormatByteSize(file.bytes()).c_str(),
      file.direct() ? "O_DIRECT" : "through the page cache", engine.c_str(), rounds);
  for (const Setting& setting : settings) {
    const std::string share = setting.shares.empty()
                                  ? "-"
                                  : absl::StrFormat("%.0f%%", 100 * Quantile(setting.shares, 0.5));
    std::printf("| %s | %d | %s | %s | %s | %s |\n",
                FormatByteSize(setting.load.queue.piece_bytes).c_str(), setting.load.queue.depth,
                Range(setting.fio_small_pages).c_str(), Range(setting.fio).c_str(),
                Range(setting.ours).c_str(), share.c_str());
  }
}

void Bench(const std::string& directory, int64_t file_bytes, absl::Duration duration, int rounds,
           bool alone) {
  if (!alone) MustBe(CheckFio());
  std::vector<Setting> settings;
  const std::vector<ReadLoad> loads = ReadLoads(kPieceBytes, kDepths, duration, kExpertBytes);
  for (const ReadLoad& load : loads) settings.push_back({load, {}, {}, {}, {}});
  Buffer memory = MustBe(Buffer::Allocate(MemoryOf(loads)));
  memory.PreferLargePages();
  const auto file = MustBe(MakeScratchFile(directory, file_bytes, {}));
  const std::string report = JoinPath(directory, absl::StrCat("read_bench.", ::getpid()));
  std::string engine;
  for (int round = 0; round < rounds; ++round) {
    for (Setting& setting : settings) {
      if (!alone) {
        setting.fio_small_pages.push_back(
            MustBe(MeasureFioRate(*file, setting.load, false, report)));
        setting.fio.push_back(MustBe(MeasureFioRate(*file, setting.load, true, report)));
      }
      const ReadRate rate = MustBe(MeasureReadRate(
          *file, setting.load, {memory.data(), static_cast<size_t>(memory.size())}, {}));
      setting.ours.push_back(rate.gb_per_s);
      if (!alone) setting.shares.push_back(setting.ours.back() / setting.fio.back());
      engine = rate.engine;
    }
    std::fprintf(stderr, "turn %d of %d\n", round + 1, rounds);
  }
  Print(*file, engine, rounds, settings);
}

int Main(int argc, char** argv) {
  CLI::App app("Reads of experts through ReadQueue, beside fio's.", "read_bench");
  std::string directory = ".";
  std::string size = "4GiB";
  double seconds = 1;
  int rounds = 5;
  app.add_option("--dir", directory, "Where a scratch file is written")->capture_default_str();
  app.add_option("--size", size, "Of that file")->capture_default_str();
  app.add_option("--seconds", seconds, "For each measurement")
      ->check(CLI::Range(0.1, 60.0))
      ->capture_default_str();
  app.add_option("--rounds", rounds, "Turns")->check(CLI::Range(1, 1000))->capture_default_str();
  bool alone = false;
  app.add_flag("--alone", alone, "Without fio");
  CLI11_PARSE(app, argc, argv);
  Bench(directory, MustBe(ParseByteSize(size)), absl::Seconds(seconds), rounds, alone);
  return 0;
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) { return caravan::Main(argc, argv); }
