#include "cli/disk_probe.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/buffer.h"
#include "base/byte_size.h"
#include "base/file.h"
#include "base/int_math.h"
#include "base/io/read_rate.h"
#include "base/open_file.h"
#include "base/status_macros.h"
#include "cli/progress_bar.h"

namespace caravan {
namespace {

// The largest is what an expert of R1 takes at 4.5 bits a weight.
constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kReadBytes[] = {1 * kMiB, 4 * kMiB, 8 * kMiB, 24 * kMiB};
constexpr int kDepths[] = {1, 2, 4, 8, 16, 32};

/// Of one write: a multiple of kDirectAlignment.
constexpr int64_t kWriteBytes = 4 * kMiB;

absl::Status RefuseWithoutRoom(const std::string& directory, int64_t bytes) {
  struct statvfs disk;
  if (::statvfs(directory.c_str(), &disk) != 0) return ErrnoStatus(errno, directory);
  const int64_t room = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
  if (room >= bytes) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(directory, ": a scratch file of ",
                                            FormatByteSize(bytes), " has no room there, where ",
                                            FormatByteSize(room), " are free; see --size"));
}

absl::Status WriteFailed(int error, const std::string& directory) {
  const absl::Status status = ErrnoStatus(error, directory);
  const bool full = error == ENOSPC || error == EDQUOT;
  return full ? absl::OutOfRangeError(status.message()) : absl::DataLossError(status.message());
}

/// Writes random bytes, which no disk can compress, past the cache where `direct`.
absl::Status FillWithNoise(int fd, int64_t bytes, bool direct, const std::string& directory,
                           const std::stop_token& stop) {
  if (direct) ::fcntl(fd, F_SETFL, O_DIRECT);
  CARAVAN_ASSIGN_OR_RETURN(const Buffer noise, Buffer::Allocate(kWriteBytes));
  uint64_t* const words = reinterpret_cast<uint64_t*>(noise.data());
  std::mt19937_64 random;
  ProgressBar bar("writing a scratch file");
  for (int64_t done = 0; done < bytes;) {
    bar.Show(done, bytes);
    if (done % kWriteBytes == 0) {
      std::generate(words, words + kWriteBytes / sizeof(uint64_t), std::ref(random));
    }
    const int64_t at = done % kWriteBytes;
    const ssize_t n = ::pwrite(fd, noise.data() + at,
                               static_cast<size_t>(std::min(kWriteBytes - at, bytes - done)), done);
    absl::Status failed;
    if (stop.stop_requested()) {
      failed = absl::CancelledError("measuring was stopped");
    } else if (n < 0 && errno != EINTR) {
      failed = WriteFailed(errno, directory);
    }
    if (!failed.ok()) {
      bar.Break();
      return failed;
    }
    done += std::max<int64_t>(n, 0);
  }
  // The disk is to be at rest when reads are measured.
  if (::fdatasync(fd) != 0) return WriteFailed(errno, directory);
  bar.Show(bytes, bytes);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DirectFile>> MakeScratchFile(const std::string& directory,
                                                            int64_t bytes, std::stop_token stop) {
  bytes = RoundUp(bytes, kDirectAlignment);
  CARAVAN_RETURN_IF_ERROR(RefuseWithoutRoom(directory, bytes));
  std::string path = JoinPath(directory, ".caravan-probe-XXXXXX");
  const FileDescriptor fd(::mkostemp(path.data(), O_CLOEXEC));
  if (fd.get() < 0) return absl::InvalidArgumentError(ErrnoStatus(errno, directory).message());
  absl::StatusOr<std::unique_ptr<DirectFile>> file = absl::UnknownError("");
  {
    const auto unlink = absl::MakeCleanup([&path] { ::unlink(path.c_str()); });
    // Its size is known before it is written, for DirectFile to see.
    if (::ftruncate(fd.get(), bytes) != 0) return WriteFailed(errno, directory);
    file = DirectFile::Open(path);
  }
  CARAVAN_RETURN_IF_ERROR(file.status());
  CARAVAN_RETURN_IF_ERROR(FillWithNoise(fd.get(), bytes, (*file)->direct(), directory, stop));
  return file;
}

absl::StatusOr<DiskProbe> ProbeDisk(const DirectFile& file, absl::Duration duration,
                                    std::stop_token stop) {
  if (file.bytes() < kLeastProbeBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": ", FormatByteSize(file.bytes()), " tell nothing about a disk; ",
        FormatByteSize(kLeastProbeBytes), " are the least"));
  }
  const std::vector<ReadLoad> loads = ReadLoads(kReadBytes, kDepths, duration);
  CARAVAN_ASSIGN_OR_RETURN(Buffer memory, Buffer::Allocate(MemoryOf(loads)));
  memory.PreferLargePages();

  DiskProbe probe;
  probe.file_bytes = file.bytes();
  probe.direct = file.direct();
  for (const ReadLoad& load : loads) {
    CARAVAN_ASSIGN_OR_RETURN(
        const ReadRate rate,
        MeasureReadRate(file, load, {memory.data(), static_cast<size_t>(memory.size())}, stop));
    probe.engine = rate.engine;
    probe.points.push_back({load.read_bytes, load.queue.depth, rate.gb_per_s});
    if (rate.gb_per_s > probe.points[probe.best].gb_per_s) probe.best = probe.points.size() - 1;
  }
  return probe;
}

std::string DiskProbeTable(const DiskProbe& probe) {
  std::string table = absl::StrFormat(
      "GB/s from random places of %s, %s, by %s; columns: reads under way\n\n%-8s",
      FormatByteSize(probe.file_bytes),
      probe.direct ? "past the page cache (O_DIRECT)" : "through the page cache (no O_DIRECT here)",
      probe.engine, "read");
  for (const int depth : kDepths) absl::StrAppendFormat(&table, "%7d ", depth);
  int64_t row = 0;
  for (size_t i = 0; i < probe.points.size(); ++i) {
    const DiskProbe::Point& point = probe.points[i];
    if (std::exchange(row, point.read_bytes) != point.read_bytes) {
      absl::StrAppendFormat(&table, "\n%2d MiB  ", point.read_bytes / kMiB);
    }
    absl::StrAppendFormat(&table, "%7.2f%c", point.gb_per_s, i == probe.best ? '*' : ' ');
  }
  const DiskProbe::Point& best = probe.points[probe.best];
  absl::StrAppendFormat(&table, "\n\n* the best: %.2f GB/s with %d reads of %d MiB under way\n",
                        best.gb_per_s, best.depth, best.read_bytes / kMiB);
  return table;
}

nlohmann::json DiskProbeJson(const DiskProbe& probe) {
  nlohmann::json points = nlohmann::json::array();
  for (const DiskProbe::Point& point : probe.points) {
    points.push_back(
        {{"read_bytes", point.read_bytes}, {"depth", point.depth}, {"gb_per_s", point.gb_per_s}});
  }
  return {{"file_bytes", probe.file_bytes},
          {"direct", probe.direct},
          {"engine", probe.engine},
          {"best", points[probe.best]},
          {"points", points}};
}

}  // namespace caravan
