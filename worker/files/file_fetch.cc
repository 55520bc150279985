#include "worker/files/file_fetch.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "worker/files/file_check.h"
#include "worker/files/partial_file.h"

namespace caravan {
namespace {

// Threads that read back what earlier lives brought.
constexpr size_t kMostCheckers = 2;

std::vector<std::string> NamesOf(const std::vector<FileSource*>& sources) {
  std::vector<std::string> names;
  for (const FileSource* source : sources) names.push_back(source->name());
  return names;
}

/// The threads around a board.
class FileFetch {
 public:
  FileFetch(const std::vector<FileSource*>& sources, const FileFetchOptions& options)
      : options_(options),
        sources_(sources),
        num_streams_(std::clamp(options.streams_per_source * static_cast<int>(sources.size()), 1,
                                std::max(1, options.max_streams))),
        board_(NamesOf(sources),
               {options.streams_per_source,
                // So that sources which do not answer leave streams for those which do.
                std::max(1, num_streams_ / 2), options.retry_delay}) {}

  /// Before Run. Errors: as PartialFile::Open.
  absl::Status Add(const std::string& path, const PackedFile& packed) {
    CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<PartialFile> partial,
                             PartialFile::Open(path, packed.bytes));
    files_.push_back({&packed, std::move(partial)});
    MutexLock lock(&mu_);
    board_.Add(packed, [&file = *files_.back().partial](int64_t begin, int64_t end) {
      return file.Has(begin, end);
    });
    return absl::OkStatus();
  }

  absl::StatusOr<FileFetchResult> Run() {
    const std::stop_callback stopped(options_.stop, [this] { Fail(Stopped()); });
    {
      std::vector<std::unique_ptr<NamedThread>> threads;
      for (int i = 0; i < num_streams_ && !sources_.empty(); ++i) {
        threads.push_back(std::make_unique<NamedThread>("file-fetch", [this] { Work(); }));
      }
      size_t num_complete = 0;
      {
        MutexLock lock(&mu_);
        num_complete = board_.complete_at_first().size();
        board_.Begin();
      }
      for (size_t i = 0; i < std::min(num_complete, kMostCheckers); ++i) {
        threads.push_back(std::make_unique<NamedThread>("file-check", [this] { CheckComplete(); }));
      }
      Watch();
      // By then the fetch has ended, whoever ended it.
      stop_reads_.request_stop();
    }
    MutexLock lock(&mu_);
    if (!board_.failure().ok()) return board_.failure();
    return board_.result();
  }

 private:
  struct File {
    const PackedFile* packed;
    std::unique_ptr<PartialFile> partial;
  };

  static absl::Status Stopped() { return absl::CancelledError("fetching files was stopped"); }

  void Work() {
    while (std::optional<PieceBoard::Task> task = Next()) {
      FileSource& source = *sources_[task->source];
      if (!task->piece.has_value()) {
        const absl::StatusOr<std::vector<OfferedFile>> files = source.List(stop_reads_.get_token());
        MutexLock lock(&mu_);
        board_.Listed(*task, files, SteadyClock().Now());
        changed_.SignalAll();
        continue;
      }
      const PieceBoard::Outcome outcome = Bring(source, *task);
      const size_t file = task->file;
      bool is_last = false;
      {
        MutexLock lock(&mu_);
        is_last = board_.Settle(*std::move(task), outcome, SteadyClock().Now());
        changed_.SignalAll();
      }
      if (is_last) ReadBack(file);
    }
  }

  std::optional<PieceBoard::Task> Next() {
    MutexLock lock(&mu_);
    while (!board_.ended()) {
      const absl::Duration now = SteadyClock().Now();
      if (std::optional<PieceBoard::Task> task = board_.Take(now)) return task;
      changed_.WaitWithTimeout(&mu_, board_.NextLook(now) - now);
    }
    return std::nullopt;
  }

  /// What the source gives of the piece now. Nobody else touches it meanwhile.
  PieceBoard::Outcome Bring(FileSource& source, PieceBoard::Task& task) {
    PartialFile& partial = *files_[task.file].partial;
    PieceCheck& piece = *task.piece;
    const FilePiece& place = piece.place();
    PieceBoard::Outcome outcome;
    const auto sink = [&](absl::Span<const std::byte> bytes) -> absl::Status {
      if (static_cast<int64_t>(bytes.size()) > piece.lacking()) {
        return absl::DataLossError("it sent more than was asked for");
      }
      if (absl::Status written = partial.Write(piece.at(), bytes); !written.ok()) {
        outcome.own_fault = true;
        return written;
      }
      return piece.Add(bytes);
    };
    const absl::StatusOr<absl::Duration> read =
        source.Read(piece.file().name, piece.at(), piece.lacking(), sink, stop_reads_.get_token());
    outcome.status = read.status();
    if (!read.ok()) return outcome;
    if (piece.lacking() > 0) {
      outcome.wait = *read;
      if (*read <= absl::ZeroDuration()) {
        outcome.status = absl::DataLossError(absl::StrCat(
            "it sent ", piece.at() - place.begin, " of ", place.end - place.begin, " bytes"));
      }
      return outcome;
    }
    outcome.status = partial.Record(place.begin, place.end);
    outcome.own_fault = !outcome.status.ok();
    return outcome;
  }

  /// What the threads for files of an earlier life do.
  void CheckComplete() {
    while (true) {
      size_t file = 0;
      {
        MutexLock lock(&mu_);
        const std::vector<size_t>& complete = board_.complete_at_first();
        if (board_.ended() || next_complete_ == complete.size()) return;
        file = complete[next_complete_++];
      }
      ReadBack(file);
    }
  }

  /// REQUIRES: all pieces of the file are there, and nobody else reads it back.
  void ReadBack(size_t f) {
    PartialFile& partial = *files_[f].partial;
    int64_t uncounted = 0;
    const auto count = [&](int64_t bytes) {
      uncounted += bytes;
      // Not at each of the small experts of a small model.
      if (uncounted >= kPieceBytes) CountRead(f, std::exchange(uncounted, 0));
      return !stop_reads_.stop_requested();
    };
    const absl::StatusOr<FileCheck> found = CheckFile(partial, *files_[f].packed, count);
    absl::Status status = found.status();
    if (status.ok()) CountRead(f, uncounted);
    if (status.ok() && found->is_right) status = partial.Finish();
    MutexLock lock(&mu_);
    changed_.SignalAll();
    if (status.ok()) {
      for (const FilePiece& piece : board_.ReadBack(f, *found, partial.path())) {
        status.Update(partial.Forget(piece.begin, piece.end));
      }
    }
    if (!status.ok()) board_.Fail(status);
  }

  void CountRead(size_t f, int64_t bytes) {
    MutexLock lock(&mu_);
    board_.CountRead(f, bytes);
    changed_.SignalAll();
  }

  void Fail(const absl::Status& why) {
    MutexLock lock(&mu_);
    board_.Fail(why);
    changed_.SignalAll();
  }

  /// Tells the caller how far it is, until all is there or cannot be.
  void Watch() {
    int64_t shown = -1;
    while (true) {
      int64_t done = 0;
      int64_t total = 0;
      bool ended = false;
      {
        MutexLock lock(&mu_);
        while (!board_.ended() && board_.done() == shown) changed_.Wait(&mu_);
        ended = board_.ended();
        if (!board_.failure().ok()) return;
        done = shown = board_.done();
        total = board_.total();
      }
      const bool go_on = options_.progress(done, total);
      if (ended) return;
      if (!go_on) Fail(Stopped());
    }
  }

  const FileFetchOptions& options_;
  const std::vector<FileSource*>& sources_;
  const int num_streams_;
  std::stop_source stop_reads_;
  std::vector<File> files_;  // does not change once threads run

  Mutex mu_;
  CondVar changed_;
  PieceBoard board_ ABSL_GUARDED_BY(mu_);
  size_t next_complete_ ABSL_GUARDED_BY(mu_) = 0;
};

bool IsWhole(const std::string& path, int64_t bytes) {
  std::error_code error;
  return std::filesystem::file_size(path, error) == static_cast<uintmax_t>(bytes) && !error;
}

}  // namespace

absl::StatusOr<FileFetchResult> FetchFiles(const std::string& directory,
                                           const std::vector<PackedFile>& files,
                                           const std::vector<FileSource*>& sources,
                                           const FileFetchOptions& options) {
  FileFetch fetch(sources, options);
  FileFetchResult nothing;
  bool is_missing = false;
  for (const PackedFile& file : files) {
    const std::string path = JoinPath(directory, file.name);
    if (IsWhole(path, file.bytes)) {
      nothing.kept_bytes += file.bytes;
      continue;
    }
    is_missing = true;
    CARAVAN_RETURN_IF_ERROR(fetch.Add(path, file));
  }
  if (!is_missing) return nothing;
  CARAVAN_ASSIGN_OR_RETURN(FileFetchResult result, fetch.Run());
  result.kept_bytes += nothing.kept_bytes;
  return result;
}

}  // namespace caravan
