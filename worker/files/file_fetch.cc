#include "worker/files/file_fetch.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "base/status_macros.h"
#include "model/pack/file_hash.h"
#include "worker/files/file_pieces.h"
#include "worker/files/partial_file.h"

namespace caravan {
namespace {

// In a row, of a source that does not answer.
constexpr int kMostFailures = 3;
// A file whose experts came right is read back wrong: by the third time it is the disk.
constexpr int kMostBadReadings = 3;
constexpr size_t kReadBytes = size_t{1} << 20;
// Threads that read back what earlier lives brought.
constexpr size_t kMostCheckers = 2;
// A thread for each has to be there.
constexpr size_t kMostSources = 64;

class FileFetch {
 public:
  FileFetch(const std::vector<FileSource*>& sources, const FileFetchOptions& options)
      : options_(options) {
    for (FileSource* source : sources) {
      if (sources_.size() == kMostSources) break;
      sources_.emplace_back().source = source;
    }
  }

  /// Before Run. Errors: as PartialFile::Open.
  absl::Status Add(const std::string& path, const PackedFile& packed) {
    MutexLock lock(&mu_);
    File& file = files_.emplace_back();
    file.packed = &packed;
    CARAVAN_ASSIGN_OR_RETURN(file.partial, PartialFile::Open(path, packed.bytes));
    total_ += packed.bytes;
    for (const FilePiece& piece : SplitIntoPieces(packed)) {
      Piece& added = file.pieces.emplace_back();
      added.place = piece;
      added.bad_from.resize(sources_.size());
      added.wrong_from.resize(sources_.size());
      if (file.partial->Has(piece.begin, piece.end)) {
        added.state = Piece::kHave;
        result_.kept_bytes += piece.end - piece.begin;
      } else {
        ++file.num_missing;
      }
    }
    if (file.num_missing == 0) {
      file.counts_as_read = true;
      complete_.push_back(files_.size() - 1);
    } else {
      for (const Piece& piece : file.pieces) {
        if (piece.state == Piece::kHave) done_ += piece.place.end - piece.place.begin;
      }
    }
    ++result_.files;
    return absl::OkStatus();
  }

  absl::StatusOr<FileFetchResult> Run() {
    const std::stop_callback stopped(options_.stop, [this] {
      MutexLock lock(&mu_);
      FailLocked(absl::CancelledError("fetching files was stopped"));
    });
    {
      std::vector<std::unique_ptr<NamedThread>> threads;
      const int streams = std::max(1, options_.max_streams / std::max(1, num_sources()));
      for (size_t s = 0; s < sources_.size(); ++s) {
        for (int i = 0; i < std::min(streams, options_.streams_per_source); ++i) {
          threads.push_back(
              std::make_unique<NamedThread>("file-fetch", [this, s, i] { Work(s, i == 0); }));
        }
      }
      for (size_t i = 0; i < std::min(complete_.size(), kMostCheckers); ++i) {
        threads.push_back(std::make_unique<NamedThread>("file-check", [this] { CheckComplete(); }));
      }
      {
        MutexLock lock(&mu_);
        FailIfStuckLocked();
      }
      Watch();
      // By then the fetch has ended, whoever ended it.
      stop_reads_.request_stop();
    }
    MutexLock lock(&mu_);
    if (!failure_.ok()) return failure_;
    return result_;
  }

 private:
  struct Piece {
    enum State { kMissing, kOnItsWay, kHave };
    FilePiece place;
    State state = kMissing;
    std::vector<bool> bad_from;    // by source: it sent wrong bytes, or has none
    std::vector<bool> wrong_from;  // of these: those that sent wrong bytes
    // Of the rest, as it came in this life.
    size_t from = 0;
    std::string hash;  // empty: it did not
  };
  /// A piece of a rest that was wrong, perhaps because of it.
  struct Suspect {
    size_t piece;
    size_t from;
    std::string hash;
  };
  struct File {
    const PackedFile* packed = nullptr;
    std::unique_ptr<PartialFile> partial;
    std::vector<Piece> pieces;
    int num_missing = 0;  // pieces that are not there, those on their way included
    bool whole = false;
    std::optional<size_t> rest_source;  // the rest comes from this source alone
    std::set<size_t> wrong_rest;        // sources whose rest was wrong
    std::set<size_t> no_rest;           // sources that could not give all of it
    // An earlier life brought all: its bytes count as done when they are read back.
    bool counts_as_read = false;
    std::vector<Suspect> suspects;
    int bad_readings = 0;
  };
  struct Source {
    FileSource* source = nullptr;
    bool listed = false;
    bool lost = false;
    std::set<std::string> offers;
    int failures = 0;  // in a row
    int64_t bytes = 0;
  };
  struct Task {
    size_t file = 0;
    size_t piece = 0;
  };
  /// What came of a piece.
  struct Outcome {
    absl::Status status;
    bool own_fault = false;    // this process could not keep it
    bool wrong_bytes = false;  // it is not what the manifest says
    std::string hash;          // of a piece of the rest
  };

  /// What the threads for files of an earlier life do.
  void CheckComplete() {
    while (true) {
      size_t file = 0;
      {
        MutexLock lock(&mu_);
        if (ended_ || next_complete_ == complete_.size()) return;
        file = complete_[next_complete_++];
      }
      Verify(file);
    }
  }

  int num_sources() const { return static_cast<int>(sources_.size()); }
  const std::string& NameOf(size_t source) const { return sources_[source].source->name(); }

  /// What the threads of a source do; the first one asks it what it has.
  void Work(size_t s, bool first) {
    if (first) AskForList(s);
    while (const std::optional<Task> task = Next(s)) {
      const Outcome outcome = Bring(*task, s);
      if (Settle(*task, s, outcome)) Verify(task->file);
    }
  }

  void AskForList(size_t s) {
    for (int attempt = 1;; ++attempt) {
      const absl::StatusOr<std::vector<OfferedFile>> offered =
          sources_[s].source->List(stop_reads_.get_token());
      MutexLock lock(&mu_);
      Source& source = sources_[s];
      if (offered.ok()) {
        for (const OfferedFile& file : *offered) source.offers.insert(file.name);
        source.listed = true;
        for (File& file : files_) {
          const bool chosen_in_vain =
              file.rest_source == s && !source.offers.contains(file.packed->name);
          if (chosen_in_vain) ChooseRestSourceLocked(file);
        }
      } else if (ended_ || attempt == kMostFailures || absl::IsAborted(offered.status())) {
        LoseLocked(s, offered.status());
      } else {
        WaitLocked(options_.retry_delay);
        continue;
      }
      FailIfStuckLocked();
      changed_.SignalAll();
      return;
    }
  }

  std::optional<Task> Next(size_t s) {
    MutexLock lock(&mu_);
    while (!ended_ && !sources_[s].lost) {
      if (sources_[s].listed && on_their_way_ < std::max(1, options_.max_streams)) {
        for (size_t f = 0; f < files_.size(); ++f) {
          File& file = files_[f];
          if (file.num_missing == 0) continue;
          for (size_t p = 0; p < file.pieces.size(); ++p) {
            if (file.pieces[p].state != Piece::kMissing || !MayBringLocked(s, file, file.pieces[p]))
              continue;
            file.pieces[p].state = Piece::kOnItsWay;
            ++on_their_way_;
            return Task{f, p};
          }
        }
      }
      changed_.Wait(&mu_);
    }
    return std::nullopt;
  }

  bool MayBringLocked(size_t s, const File& file, const Piece& piece) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const Source& source = sources_[s];
    if (source.lost || piece.bad_from[s]) return false;
    if (!source.listed) return true;  // it is not known yet
    if (!source.offers.contains(file.packed->name)) return false;
    return !piece.place.is_rest() || !file.rest_source.has_value() || *file.rest_source == s;
  }

  /// Brings and checks one piece. Of a file that is on its way nobody else touches the piece.
  Outcome Bring(const Task& task, size_t s) {
    PartialFile* partial = nullptr;
    const PackedFile* packed = nullptr;
    FilePiece place;
    {
      MutexLock lock(&mu_);
      partial = files_[task.file].partial.get();
      packed = files_[task.file].packed;
      place = files_[task.file].pieces[task.piece].place;
    }
    Outcome outcome;
    FileHash hash;  // of the expert that comes, or of the piece of the rest
    int64_t at = place.begin;
    const auto check = [&](absl::Span<const std::byte> bytes) -> absl::Status {
      if (place.is_rest()) {
        hash.Add(bytes);
        return absl::OkStatus();
      }
      const PackedExperts& experts = *packed->experts;
      for (int64_t from = at; !bytes.empty();) {
        const int64_t expert = (from - experts.offset) / experts.stride;
        const int64_t end = experts.offset + (expert + 1) * experts.stride;
        const auto size = std::min(static_cast<size_t>(end - from), bytes.size());
        hash.Add(bytes.first(size));
        bytes.remove_prefix(size);
        from += static_cast<int64_t>(size);
        if (from < end) break;
        if (hash.Digest() != experts.hashes[static_cast<size_t>(expert)]) {
          outcome.wrong_bytes = true;
          return absl::DataLossError(
              absl::StrCat("expert ", expert, " is not what the manifest says"));
        }
        hash = FileHash();
      }
      return absl::OkStatus();
    };
    const auto sink = [&](absl::Span<const std::byte> bytes) -> absl::Status {
      if (static_cast<int64_t>(bytes.size()) > place.end - at) {
        return absl::DataLossError("it sent more than was asked for");
      }
      if (absl::Status written = partial->Write(at, bytes); !written.ok()) {
        outcome.own_fault = true;
        return written;
      }
      CARAVAN_RETURN_IF_ERROR(check(bytes));
      at += static_cast<int64_t>(bytes.size());
      return absl::OkStatus();
    };
    outcome.status = sources_[s].source->Read(packed->name, place.begin, place.end - place.begin,
                                              sink, stop_reads_.get_token());
    if (outcome.status.ok() && at != place.end) {
      outcome.status = absl::DataLossError(
          absl::StrCat("it sent ", at - place.begin, " of ", place.end - place.begin, " bytes"));
    }
    if (!outcome.status.ok()) return outcome;
    if (place.is_rest()) outcome.hash = hash.Digest();
    if (absl::Status noted = partial->Record(place.begin, place.end); !noted.ok()) {
      outcome.status = std::move(noted);
      outcome.own_fault = true;
    }
    return outcome;
  }

  /// Returns whether the file's last piece has come.
  bool Settle(const Task& task, size_t s, const Outcome& outcome) {
    MutexLock lock(&mu_);
    File& file = files_[task.file];
    Piece& piece = file.pieces[task.piece];
    Source& source = sources_[s];
    const int64_t bytes = piece.place.end - piece.place.begin;
    --on_their_way_;
    changed_.SignalAll();
    if (outcome.status.ok()) {
      piece.state = Piece::kHave;
      piece.from = s;
      piece.hash = outcome.hash;
      source.failures = 0;
      source.bytes += bytes;
      result_.bytes_from[NameOf(s)] += bytes;
      result_.bytes += bytes;
      done_ += bytes;
      return --file.num_missing == 0;
    }
    piece.state = Piece::kMissing;
    if (ended_) return false;
    if (outcome.own_fault) {
      FailLocked(outcome.status);
      return false;
    }
    const std::string what =
        absl::StrCat(file.packed->name, ", bytes ", piece.place.begin, " to ", piece.place.end);
    const absl::StatusCode code = outcome.status.code();
    const bool away = code == absl::StatusCode::kUnavailable ||
                      code == absl::StatusCode::kDeadlineExceeded ||
                      code == absl::StatusCode::kCancelled;
    if (code == absl::StatusCode::kAborted) {
      LoseLocked(s, outcome.status);
    } else if (away) {
      if (++source.failures >= kMostFailures) {
        LoseLocked(s, outcome.status);
      } else {
        WaitLocked(options_.retry_delay);
      }
    } else {
      // It answers; another may have better bytes of this piece.
      piece.bad_from[s] = true;
      piece.wrong_from[s] = outcome.wrong_bytes;
      if (piece.place.is_rest()) {
        file.no_rest.insert(s);
        if (file.rest_source == s) ChooseRestSourceLocked(file);
      }
      LogWarning("bad_piece",
                 {{"file", what}, {"from", NameOf(s)}, {"why", outcome.status.message()}});
    }
    last_failure_ = Annotate(outcome.status, absl::StrCat(what, ", from ", NameOf(s)));
    FailIfStuckLocked();
    return false;
  }

  /// REQUIRES: all pieces of the file are there, and nobody else verifies it.
  void Verify(size_t f) {
    PartialFile* partial = nullptr;
    const PackedFile* packed = nullptr;
    {
      MutexLock lock(&mu_);
      partial = files_[f].partial.get();
      packed = files_[f].packed;
    }
    bool right = false;
    absl::StatusOr<std::vector<int64_t>> bad = FindBadExperts(f, *partial, *packed, right);
    absl::Status status = bad.status();
    if (status.ok() && right) status = partial->Finish();
    MutexLock lock(&mu_);
    changed_.SignalAll();
    files_[f].counts_as_read = false;
    if (!status.ok()) {
      FailLocked(status);
      return;
    }
    if (right) {
      files_[f].whole = true;
      NameTheWrongLocked(files_[f]);
      return;
    }
    status = bad->empty() ? RestIsWrongLocked(files_[f]) : ExpertsAreWrongLocked(files_[f], *bad);
    if (!status.ok()) FailLocked(status);
    FailIfStuckLocked();
  }

  /// Reads the file back. `right`: its hash is the manifest's. Errors: DataLoss - the disk failed;
  /// Cancelled - the fetch has ended.
  absl::StatusOr<std::vector<int64_t>> FindBadExperts(size_t f, const PartialFile& partial,
                                                      const PackedFile& packed, bool& right) {
    std::vector<int64_t> bad;
    std::vector<std::byte> buffer(kReadBytes);
    FileHash whole;
    int64_t at = 0;
    int64_t noted = 0;
    const auto read_to = [&](int64_t end, FileHash* part) -> absl::Status {
      while (at < end) {
        if (stop_reads_.stop_requested()) return absl::CancelledError("fetching files was stopped");
        const auto bytes = absl::MakeSpan(buffer).first(
            static_cast<size_t>(std::min<int64_t>(kReadBytes, end - at)));
        CARAVAN_RETURN_IF_ERROR(partial.Read(at, bytes));
        whole.Add(bytes);
        if (part != nullptr) part->Add(bytes);
        at += static_cast<int64_t>(bytes.size());
        if (at - noted < kPieceBytes && at < packed.bytes) continue;
        CARAVAN_RETURN_IF_ERROR(NoteRead(f, at - noted));
        noted = at;
      }
      return absl::OkStatus();
    };
    if (packed.experts.has_value()) {
      const PackedExperts& experts = *packed.experts;
      CARAVAN_RETURN_IF_ERROR(read_to(experts.offset, nullptr));
      for (int64_t e = 0; e < experts.count; ++e) {
        FileHash part;
        CARAVAN_RETURN_IF_ERROR(read_to(at + experts.stride, &part));
        if (part.Digest() != experts.hashes[static_cast<size_t>(e)]) bad.push_back(e);
      }
    }
    CARAVAN_RETURN_IF_ERROR(read_to(packed.bytes, nullptr));
    right = whole.Digest() == packed.hash;
    return bad;
  }

  /// Errors: Cancelled - the fetch has ended.
  absl::Status NoteRead(size_t f, int64_t bytes) {
    MutexLock lock(&mu_);
    if (ended_) return absl::CancelledError("fetching files was stopped");
    if (files_[f].counts_as_read) {
      done_ += bytes;
      changed_.SignalAll();
    }
    return absl::OkStatus();
  }

  /// The piece is to come again. Errors: as PartialFile::Forget.
  absl::Status AgainLocked(File& file, Piece& piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    piece.state = Piece::kMissing;
    piece.hash.clear();
    ++file.num_missing;
    done_ -= piece.place.end - piece.place.begin;
    return file.partial->Forget(piece.place.begin, piece.place.end);
  }

  /// They were right when they came, so the record of an earlier life was wrong, or the disk is.
  absl::Status ExpertsAreWrongLocked(File& file, const std::vector<int64_t>& bad)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const std::string& path = file.partial->path();
    if (++file.bad_readings >= kMostBadReadings) {
      return absl::DataLossError(
          absl::StrCat(path, ": the disk gives back other bytes than were written to it"));
    }
    LogWarning("file_read_back_wrong", {{"file", path}, {"experts", bad.size()}});
    for (Piece& piece : file.pieces) {
      const auto first = std::lower_bound(bad.begin(), bad.end(), piece.place.first_expert);
      const bool is_bad =
          first != bad.end() && *first < piece.place.first_expert + piece.place.num_experts;
      if (is_bad) CARAVAN_RETURN_IF_ERROR(AgainLocked(file, piece));
    }
    return absl::OkStatus();
  }

  absl::Status RestIsWrongLocked(File& file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::set<size_t> from;
    bool all_came = true;  // in this life
    bool has_rest = false;
    for (size_t p = 0; p < file.pieces.size(); ++p) {
      Piece& piece = file.pieces[p];
      if (!piece.place.is_rest()) continue;
      has_rest = true;
      if (piece.hash.empty()) {
        all_came = false;
      } else {
        from.insert(piece.from);
        file.suspects.push_back({p, piece.from, piece.hash});
      }
      CARAVAN_RETURN_IF_ERROR(AgainLocked(file, piece));
    }
    if (!has_rest) {
      return absl::DataLossError(absl::StrCat(
          file.packed->name, ": the manifest's hash of it is not that of what it must consist of"));
    }
    std::vector<std::string> names;
    for (const size_t s : from) names.push_back(NameOf(s));
    if (!all_came) names.push_back("an earlier run");
    LogWarning("file_hash_wrong",
               {{"file", file.packed->name}, {"from", absl::StrJoin(names, ", ")}});
    // What an earlier run noted says nothing against who is there now.
    if (!all_came) return absl::OkStatus();
    if (from.size() == 1) file.wrong_rest.insert(*from.begin());
    if (ChooseRestSourceLocked(file)) return absl::OkStatus();
    const std::string what =
        absl::StrCat(file.packed->name,
                     ": nobody has the bytes that the manifest's hash is of; wrong are those of ",
                     absl::StrJoin(names, ", "));
    for (size_t s = 0; s < sources_.size(); ++s) {
      const bool may_be_right = MayHaveLocked(s, file) && !file.wrong_rest.contains(s);
      if (may_be_right) return absl::UnavailableError(what);
    }
    return absl::DataLossError(what);
  }

  /// Lost or not: whether it has said that it has the file, or has not said anything yet.
  bool MayHaveLocked(size_t s, const File& file) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return !sources_[s].listed || sources_[s].offers.contains(file.packed->name);
  }

  /// The first source that has the file, or has not said yet, none of whose rests of it was wrong
  /// and that failed to give no piece of it. False: there is none.
  bool ChooseRestSourceLocked(File& file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    file.rest_source.reset();
    for (size_t s = 0; s < sources_.size() && !file.rest_source.has_value(); ++s) {
      const bool may_give = !sources_[s].lost && MayHaveLocked(s, file) &&
                            !file.wrong_rest.contains(s) && !file.no_rest.contains(s);
      if (may_give) file.rest_source = s;
    }
    return file.rest_source.has_value();
  }

  void NameTheWrongLocked(const File& file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    for (const Suspect& suspect : file.suspects) {
      const Piece& piece = file.pieces[suspect.piece];
      if (piece.hash == suspect.hash) continue;
      LogWarning("bad_piece", {{"file", absl::StrCat(file.packed->name, ", bytes ",
                                                     piece.place.begin, " to ", piece.place.end)},
                               {"from", NameOf(suspect.from)},
                               {"why", "the file's hash was wrong with it"}});
    }
  }

  void LoseLocked(size_t s, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (sources_[s].lost || ended_) return;
    sources_[s].lost = true;
    LogWarning("file_source_lost", {{"source", NameOf(s)}, {"why", why.message()}});
    last_failure_ = Annotate(why, NameOf(s));
    for (File& file : files_) {
      // Where nobody is left, from whomever: that it is wrong then shows again.
      if (file.rest_source == s) ChooseRestSourceLocked(file);
    }
  }

  /// Ends the fetch if a piece is left that nobody may bring.
  void FailIfStuckLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (ended_) return;
    for (const File& file : files_) {
      for (const Piece& piece : file.pieces) {
        if (piece.state != Piece::kMissing) continue;
        bool can = false;
        for (size_t s = 0; s < sources_.size() && !can; ++s) can = MayBringLocked(s, file, piece);
        if (can) continue;
        FailLocked(NobodyLeftLocked(file, piece));
        return;
      }
    }
  }

  /// Why a piece cannot be had. A source's error is of that source: here it says only that nobody
  /// can give the piece now, but where all who have it send something else than the manifest says.
  absl::Status NobodyLeftLocked(const File& file, const Piece& piece) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const std::string& name = file.packed->name;
    if (last_failure_.ok()) {
      return absl::UnavailableError(absl::StrCat(name, ": nobody who answers has it"));
    }
    const std::string what = absl::StrCat(name, ": nobody else has it: ", last_failure_.message());
    bool all_wrong = false;
    for (size_t s = 0; s < sources_.size(); ++s) {
      if (!MayHaveLocked(s, file)) continue;
      if (!piece.wrong_from[s]) return absl::UnavailableError(what);
      all_wrong = true;
    }
    return all_wrong ? absl::DataLossError(what) : absl::UnavailableError(what);
  }

  void FailLocked(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!ended_) failure_ = why;
    ended_ = true;
    changed_.SignalAll();
  }

  void WaitLocked(absl::Duration time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const absl::Duration until = SteadyClock().Now() + time;
    for (absl::Duration left = time; !ended_ && left > absl::ZeroDuration();
         left = until - SteadyClock().Now()) {
      changed_.WaitWithTimeout(&mu_, left);
    }
  }

  /// Tells the caller how far it is, until all is there or cannot be.
  void Watch() {
    int64_t shown = -1;
    while (true) {
      int64_t done = 0;
      int64_t total = 0;
      {
        MutexLock lock(&mu_);
        while (!ended_ && done_ == shown && !AllWholeLocked()) changed_.Wait(&mu_);
        if (AllWholeLocked()) ended_ = true;
        changed_.SignalAll();
        done = shown = done_;
        total = total_;
        if (ended_ && !failure_.ok()) return;
      }
      const bool go_on = options_.progress(done, total);
      MutexLock lock(&mu_);
      if (ended_) return;
      if (!go_on) FailLocked(absl::CancelledError("fetching files was stopped"));
    }
  }

  bool AllWholeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return std::all_of(files_.begin(), files_.end(), [](const File& file) { return file.whole; });
  }

  const FileFetchOptions& options_;
  std::stop_source stop_reads_;
  // Files all of whose pieces came in an earlier life; does not change once threads run.
  std::vector<size_t> complete_;

  Mutex mu_;
  CondVar changed_;
  // Their sizes do not change once threads run.
  std::vector<Source> sources_;  // guarded by mu_ but for Source::source
  std::vector<File> files_ ABSL_GUARDED_BY(mu_);
  size_t next_complete_ ABSL_GUARDED_BY(mu_) = 0;
  int on_their_way_ ABSL_GUARDED_BY(mu_) = 0;  // pieces
  int64_t done_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t total_ ABSL_GUARDED_BY(mu_) = 0;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  absl::Status last_failure_ ABSL_GUARDED_BY(mu_);  // of a source
  FileFetchResult result_ ABSL_GUARDED_BY(mu_);
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
