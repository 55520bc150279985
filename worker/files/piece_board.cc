#include "worker/files/piece_board.h"

#include <algorithm>
#include <tuple>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// In a row, each of a time of its own, of a source that does not answer.
constexpr int kMostFailures = 3;
// A file whose experts came right is read back wrong: by the third time it is the disk.
constexpr int kMostBadReadings = 3;

/// Whether it says that the source does not answer, rather than what it answers.
bool IsAway(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status);
}

std::string NameOf(const PackedFile& file, const FilePiece& place) {
  return absl::StrCat(file.name, ", bytes ", place.begin, " to ", place.end);
}

}  // namespace

PieceBoard::PieceBoard(std::vector<std::string> sources, const Options& options)
    : options_(options) {
  for (std::string& name : sources) sources_.emplace_back().name = std::move(name);
}

void PieceBoard::Add(const PackedFile& packed,
                     const std::function<bool(int64_t begin, int64_t end)>& has) {
  File& file = files_.emplace_back();
  file.packed = &packed;
  file.offered_by.resize(sources_.size());
  total_ += packed.bytes;
  int64_t there = 0;
  for (const FilePiece& place : SplitIntoPieces(packed)) {
    Piece& piece = file.pieces.emplace_back();
    piece.place = place;
    piece.bad_from.resize(sources_.size());
    piece.wrong_from.resize(sources_.size());
    if (has(place.begin, place.end)) {
      piece.state = Piece::kThere;
      there += place.end - place.begin;
    } else {
      ++file.num_missing;
    }
  }
  result_.kept_bytes += there;
  ++result_.files;
  if (file.num_missing == 0) {
    file.counts_as_read = true;
    complete_.push_back(files_.size() - 1);
  } else {
    done_ += there;
  }
}

bool PieceBoard::AllWhole() const {
  return std::all_of(files_.begin(), files_.end(), [](const File& file) { return file.whole; });
}

std::optional<PieceBoard::Task> PieceBoard::Take(absl::Duration now) {
  if (ended()) return std::nullopt;
  Task task;
  task.begun = now;
  for (size_t s = 0; s < sources_.size() && lists_ < options_.max_lists; ++s) {
    Source& source = sources_[s];
    if (source.listed || source.lost || source.is_asked || source.free_at > now) continue;
    source.is_asked = true;
    ++lists_;
    task.source = s;
    return task;
  }
  // Whoever does least, then whoever has done least, so that all sources share the work.
  std::vector<size_t> order;
  for (size_t s = 0; s < sources_.size(); ++s) {
    if (MayRead(sources_[s], now)) order.push_back(s);
  }
  std::sort(order.begin(), order.end(), [this](size_t a, size_t b) {
    const Source& x = sources_[a];
    const Source& y = sources_[b];
    return std::tie(x.reads, x.bytes, a) < std::tie(y.reads, y.bytes, b);
  });
  for (const size_t s : order) {
    const std::optional<PieceId> id = Choose(s);
    if (!id.has_value()) continue;
    Piece& piece = At(*id);
    task.source = s;
    task.file = id->first;
    task.index = id->second;
    task.piece = std::exchange(piece.progress, std::nullopt);
    if (!task.piece.has_value()) task.piece.emplace(files_[task.file].packed, piece.place);
    piece.state = Piece::kOnItsWay;
    ++sources_[s].reads;
    return task;
  }
  return std::nullopt;
}

bool PieceBoard::MayRead(const Source& source, absl::Duration now) const {
  const int most = source.busy || source.failures > 0 ? 1 : options_.streams_per_source;
  return source.listed && !source.lost && source.free_at <= now && source.reads < most;
}

std::optional<PieceBoard::PieceId> PieceBoard::Choose(size_t s) {
  Source& source = sources_[s];
  if (!source.waits.empty()) {
    const PieceId id = source.waits.front();
    source.waits.erase(source.waits.begin());
    return id;
  }
  for (size_t f = 0; f < files_.size(); ++f) {
    const File& file = files_[f];
    if (file.num_missing == 0 || !MayHave(s, file)) continue;
    for (size_t p = 0; p < file.pieces.size(); ++p) {
      const Piece& piece = file.pieces[p];
      if (piece.state == Piece::kMissing && MayBring(s, file, piece)) return PieceId{f, p};
    }
  }
  if (source.busy) return std::nullopt;
  // Of what waits at others, that of which least is lost.
  Source* holder = nullptr;
  PieceId least;
  for (Source& other : sources_) {
    for (const PieceId& id : other.waits) {
      const Piece& piece = At(id);
      if (piece.was_taken_over || !MayBring(s, files_[id.first], piece)) continue;
      if (holder != nullptr && At(least).progress->lacking() >= piece.progress->lacking()) continue;
      holder = &other;
      least = id;
    }
  }
  if (holder == nullptr) return std::nullopt;
  holder->waits.erase(std::find(holder->waits.begin(), holder->waits.end(), least));
  At(least).was_taken_over = true;
  At(least).progress.reset();
  return least;
}

absl::Duration PieceBoard::NextLook(absl::Duration now) const {
  absl::Duration next = absl::InfiniteDuration();
  for (const Source& source : sources_) {
    if (!source.lost && source.free_at > now) next = std::min(next, source.free_at);
  }
  return next;
}

bool PieceBoard::MayBring(size_t s, const File& file, const Piece& piece) const {
  if (sources_[s].lost || piece.bad_from[s] || !MayHave(s, file)) return false;
  if (!sources_[s].listed) return true;
  return !piece.place.is_rest() || !file.rest_source.has_value() || *file.rest_source == s;
}

void PieceBoard::Listed(const Task& task, const absl::StatusOr<std::vector<OfferedFile>>& files,
                        absl::Duration now) {
  const size_t s = task.source;
  Source& source = sources_[s];
  source.is_asked = false;
  --lists_;
  if (ended()) return;
  if (!files.ok()) {
    // Before it has said anything, whatever it says is no answer.
    if (absl::IsAborted(files.status())) {
      Lose(s, files.status());
    } else {
      NoteAway(s, files.status(), task.begun, now);
    }
    FailIfStuck();
    return;
  }
  source.listed = true;
  source.failures = 0;
  absl::flat_hash_set<absl::string_view> names;
  for (const OfferedFile& file : *files) names.insert(file.name);
  for (File& file : files_) {
    file.offered_by[s] = names.contains(file.packed->name);
    const bool chosen_in_vain = file.rest_source == s && !file.offered_by[s];
    if (chosen_in_vain) ChooseRestSource(file);
  }
  FailIfStuck();
}

bool PieceBoard::Settle(Task task, const Outcome& outcome, absl::Duration now) {
  const size_t s = task.source;
  Source& source = sources_[s];
  File& file = files_[task.file];
  Piece& piece = file.pieces[task.index];
  const PieceCheck& check = *task.piece;
  --source.reads;
  if (outcome.status.ok()) source.failures = 0;
  if (outcome.status.ok() && outcome.wait <= absl::ZeroDuration()) {
    const int64_t bytes = piece.place.end - piece.place.begin;
    piece.state = Piece::kThere;
    piece.from = s;
    if (piece.place.is_rest()) piece.hash = check.RestHash();
    source.busy = false;
    source.bytes += bytes;
    result_.bytes_from[source.name] += bytes;
    result_.bytes += bytes;
    done_ += bytes;
    return --file.num_missing == 0;
  }
  piece.state = Piece::kMissing;
  if (ended()) return false;
  if (outcome.status.ok()) {
    source.busy = true;
    source.free_at = std::max(source.free_at, now + outcome.wait);
    if (!source.lost && check.at() > piece.place.begin) {
      piece.state = Piece::kWaits;
      piece.progress = std::move(task.piece);
      source.waits.emplace_back(task.file, task.index);
    }
  } else if (outcome.own_fault) {
    Fail(outcome.status);
  } else {
    if (absl::IsAborted(outcome.status)) {
      Lose(s, outcome.status);
    } else if (IsAway(outcome.status)) {
      NoteAway(s, outcome.status, task.begun, now);
    } else {
      NoteBad(s, file, piece, check.has_wrong_bytes(), outcome.status);
    }
    last_failure_ = Annotate(
        outcome.status, absl::StrCat(NameOf(*file.packed, piece.place), ", from ", source.name));
  }
  FailIfStuck();
  return false;
}

void PieceBoard::NoteAway(size_t s, const absl::Status& why, absl::Duration begun,
                          absl::Duration now) {
  Source& source = sources_[s];
  source.free_at = std::max(source.free_at, now + options_.retry_delay);
  // What ended one read has ended all that were under way.
  if (begun < source.failed_at) return;
  source.failed_at = now;
  if (++source.failures >= kMostFailures) Lose(s, why);
}

/// It answers; another may have better bytes of this piece.
void PieceBoard::NoteBad(size_t s, File& file, Piece& piece, bool wrong_bytes,
                         const absl::Status& why) {
  piece.bad_from[s] = true;
  piece.wrong_from[s] = wrong_bytes;
  if (piece.place.is_rest()) {
    file.no_rest.insert(s);
    if (file.rest_source == s) ChooseRestSource(file);
  }
  LogWarning("bad_piece", {{"file", NameOf(*file.packed, piece.place)},
                           {"from", sources_[s].name},
                           {"why", why.message()}});
}

void PieceBoard::Lose(size_t s, const absl::Status& why) {
  Source& source = sources_[s];
  if (source.lost || ended()) return;
  source.lost = true;
  LogWarning("file_source_lost", {{"source", source.name}, {"why", why.message()}});
  last_failure_ = Annotate(why, source.name);
  for (const PieceId& id : std::exchange(source.waits, {})) {
    At(id).state = Piece::kMissing;
    At(id).progress.reset();
  }
  for (File& file : files_) {
    // Where nobody is left, from whomever: that it is wrong then shows again.
    if (file.rest_source == s) ChooseRestSource(file);
  }
}

void PieceBoard::CountRead(size_t file, int64_t bytes) {
  if (files_[file].counts_as_read) done_ += bytes;
}

std::vector<FilePiece> PieceBoard::ReadBack(size_t f, const FileCheck& found,
                                            const std::string& path) {
  File& file = files_[f];
  file.counts_as_read = false;
  if (found.is_right) {
    file.whole = true;
    NameTheWrong(file);
    return {};
  }
  std::vector<FilePiece> again = found.bad_experts.empty()
                                     ? RestIsWrong(file)
                                     : ExpertsAreWrong(file, found.bad_experts, path);
  FailIfStuck();
  return again;
}

/// The piece is to come again.
FilePiece PieceBoard::Again(File& file, Piece& piece) {
  piece.state = Piece::kMissing;
  piece.hash.clear();
  ++file.num_missing;
  done_ -= piece.place.end - piece.place.begin;
  return piece.place;
}

/// They were right when they came, so the record of an earlier life was wrong, or the disk is.
std::vector<FilePiece> PieceBoard::ExpertsAreWrong(File& file, const std::vector<int64_t>& bad,
                                                   const std::string& path) {
  if (++file.bad_readings >= kMostBadReadings) {
    Fail(absl::DataLossError(
        absl::StrCat(path, ": the disk gives back other bytes than were written to it")));
    return {};
  }
  LogWarning("file_read_back_wrong", {{"file", path}, {"experts", bad.size()}});
  std::vector<FilePiece> again;
  for (Piece& piece : file.pieces) {
    const auto first = std::lower_bound(bad.begin(), bad.end(), piece.place.first_expert);
    const bool is_bad =
        first != bad.end() && *first < piece.place.first_expert + piece.place.num_experts;
    if (is_bad) again.push_back(Again(file, piece));
  }
  return again;
}

std::vector<FilePiece> PieceBoard::RestIsWrong(File& file) {
  std::set<size_t> from;
  bool all_came = true;  // in this life
  std::vector<FilePiece> again;
  for (size_t p = 0; p < file.pieces.size(); ++p) {
    Piece& piece = file.pieces[p];
    if (!piece.place.is_rest()) continue;
    if (piece.hash.empty()) {
      all_came = false;
    } else {
      from.insert(piece.from);
      file.suspects.push_back({p, piece.from, piece.hash});
    }
    again.push_back(Again(file, piece));
  }
  if (again.empty()) {
    Fail(absl::DataLossError(absl::StrCat(
        file.packed->name, ": the manifest's hash of it is not that of what it must consist of")));
    return {};
  }
  std::vector<std::string> names;
  for (const size_t s : from) names.push_back(sources_[s].name);
  if (!all_came) names.push_back("an earlier run");
  LogWarning("file_hash_wrong",
             {{"file", file.packed->name}, {"from", absl::StrJoin(names, ", ")}});
  // What an earlier run noted says nothing against who is there now.
  if (!all_came) return again;
  if (from.size() == 1) file.wrong_rest.insert(*from.begin());
  if (ChooseRestSource(file)) return again;
  const std::string what =
      absl::StrCat(file.packed->name,
                   ": nobody has the bytes that the manifest's hash is of; wrong are those of ",
                   absl::StrJoin(names, ", "));
  bool may_be_right = false;
  for (size_t s = 0; s < sources_.size(); ++s) {
    if (MayHave(s, file) && !file.wrong_rest.contains(s)) may_be_right = true;
  }
  Fail(may_be_right ? absl::UnavailableError(what) : absl::DataLossError(what));
  return again;
}

/// Lost or not: whether it has said that it has the file, or has not said anything yet.
bool PieceBoard::MayHave(size_t s, const File& file) const {
  return !sources_[s].listed || file.offered_by[s];
}

/// The first source that has the file, or has not said yet, none of whose rests of it was wrong and
/// that failed to give no piece of it. False: there is none.
bool PieceBoard::ChooseRestSource(File& file) {
  file.rest_source.reset();
  for (size_t s = 0; s < sources_.size() && !file.rest_source.has_value(); ++s) {
    const bool may_give = !sources_[s].lost && MayHave(s, file) && !file.wrong_rest.contains(s) &&
                          !file.no_rest.contains(s);
    if (may_give) file.rest_source = s;
  }
  return file.rest_source.has_value();
}

void PieceBoard::NameTheWrong(const File& file) const {
  for (const Suspect& suspect : file.suspects) {
    const Piece& piece = file.pieces[suspect.piece];
    if (piece.hash == suspect.hash) continue;
    LogWarning("bad_piece", {{"file", NameOf(*file.packed, piece.place)},
                             {"from", sources_[suspect.from].name},
                             {"why", "the file's hash was wrong with it"}});
  }
}

/// Ends the fetch if a piece is left that nobody may bring.
void PieceBoard::FailIfStuck() {
  if (ended()) return;
  for (const File& file : files_) {
    for (const Piece& piece : file.pieces) {
      if (piece.state != Piece::kMissing) continue;
      bool can = false;
      for (size_t s = 0; s < sources_.size() && !can; ++s) can = MayBring(s, file, piece);
      if (can) continue;
      Fail(NobodyLeft(file, piece));
      return;
    }
  }
}

/// Why a piece cannot be had. A source's error is of that source: here it says only that nobody can
/// give the piece now, but where all who have it send something else than the manifest says.
absl::Status PieceBoard::NobodyLeft(const File& file, const Piece& piece) const {
  const std::string& name = file.packed->name;
  if (last_failure_.ok()) {
    return absl::UnavailableError(absl::StrCat(name, ": nobody who answers has it"));
  }
  const std::string what = absl::StrCat(name, ": nobody else has it: ", last_failure_.message());
  bool all_wrong = false;
  for (size_t s = 0; s < sources_.size(); ++s) {
    if (!MayHave(s, file)) continue;
    if (!piece.wrong_from[s]) return absl::UnavailableError(what);
    all_wrong = true;
  }
  return all_wrong ? absl::DataLossError(what) : absl::UnavailableError(what);
}

void PieceBoard::Fail(const absl::Status& why) {
  if (!ended()) failure_ = why;
}

}  // namespace caravan
