#ifndef CARAVAN_WORKER_FILES_PIECE_BOARD_H_
#define CARAVAN_WORKER_FILES_PIECE_BOARD_H_

// Which piece of which file comes from which source, and what follows from what came of it. Knows
// no threads, no network and no disk; those who do (worker/files/file_fetch.h) take tasks from it
// and say how they ended.
//
// A piece:
//
//             Take                       Settle: all of it came, and is right
//   missing --------> on its way ------------------------------------------> there
//      ^   ^            |   ^  |                                               |
//      |   '- failed ---'   |  | the source is busy, and a part has come       |
//      |               Take |  v                                               |
//      +--- taken over -- waits                                                |
//      '--------------------------- ReadBack: wrong after all -----------------'
//
// A source that is busy serves, and says how long it wants to be left alone; until then others are
// asked. It keeps the piece of which it has sent a part, but where a source that is not busy has
// nothing else to bring, that one brings the piece, all of it, so that what is wrong has one
// sender. That happens to a piece once: two sources that are busy now and then must not take it
// from each other for ever.
//
// Of a file's rest (worker/files/file_pieces.h) nobody knows who sent what is wrong. So it comes
// again from one source alone, and from the next one, until the file's hash is right; comparing
// pieces then shows whose were wrong.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/pack/pack_manifest.h"
#include "worker/files/file_check.h"
#include "worker/files/file_pieces.h"
#include "worker/files/file_source.h"
#include "worker/files/piece_check.h"

namespace caravan {

struct FileFetchResult {
  int files = 0;                              // that were not there as a whole
  int64_t bytes = 0;                          // that came
  int64_t kept_bytes = 0;                     // that were there
  std::map<std::string, int64_t> bytes_from;  // by source
};

/// Not thread-safe. Times are of one clock, and do not go back.
class PieceBoard {
 public:
  struct Options {
    int streams_per_source = 2;  // reads under way from a source; of one that is busy or failed: 1
    int max_lists = 8;           // sources that are asked for their lists at a time
    absl::Duration retry_delay = absl::Seconds(1);  // after a failure of a source
  };

  struct Task {
    size_t source = 0;
    // Nothing: the source is to say what it has. Else the piece that it is to bring, from `at()`
    // on.
    std::optional<PieceCheck> piece;
    size_t file = 0;
    size_t index = 0;           // of the piece in the file
    absl::Duration begun = {};  // when it was taken
  };

  /// What came of a piece. OK and all of it, or OK and `wait`: the source wants to be left alone.
  struct Outcome {
    absl::Status status;
    absl::Duration wait = absl::ZeroDuration();
    bool own_fault = false;  // this process could not keep what came
  };

  PieceBoard(std::vector<std::string> sources, const Options& options);

  /// Borrows the file. `has` says whether [begin, end) of it is there already. Before all else.
  void Add(const PackedFile& file, const std::function<bool(int64_t begin, int64_t end)>& has);

  /// To be called when all files were added: ends the fetch where there is nobody to ask.
  void Begin() { FailIfStuck(); }

  /// What to do next; nullopt: nothing now, but perhaps when a task was settled, or at NextLook().
  std::optional<Task> Take(absl::Duration now);
  /// Infinite: time alone changes nothing.
  absl::Duration NextLook(absl::Duration now) const;

  /// Each task ends by one of these.
  void Listed(const Task& task, const absl::StatusOr<std::vector<OfferedFile>>& files,
              absl::Duration now);
  /// Returns whether all of the file's pieces are there now: the caller then reads it back.
  bool Settle(Task task, const Outcome& outcome, absl::Duration now);

  /// Bytes of a file that an earlier life brought were read back.
  void CountRead(size_t file, int64_t bytes);
  /// What reading it back has shown; `path` is for messages. Returns what is to come again.
  std::vector<FilePiece> ReadBack(size_t file, const FileCheck& found, const std::string& path);

  /// Ends the fetch, unless it has ended.
  void Fail(const absl::Status& why);

  bool ended() const { return !failure_.ok() || AllWhole(); }
  /// OK: it goes on, or all files are whole.
  const absl::Status& failure() const { return failure_; }
  const FileFetchResult& result() const { return result_; }
  int64_t done() const { return done_; }    // bytes that are there, or were read back
  int64_t total() const { return total_; }  // bytes of all files
  /// Files all of whose pieces were there when they were added: the caller reads them back.
  const std::vector<size_t>& complete_at_first() const { return complete_; }

 private:
  struct Piece {
    enum State { kMissing, kOnItsWay, kWaits, kThere };
    FilePiece place;
    State state = kMissing;
    bool was_taken_over = false;
    std::optional<PieceCheck> progress;  // where it waits
    std::vector<bool> bad_from;          // by source: it sent wrong bytes, or has none
    std::vector<bool> wrong_from;        // of these: those that sent wrong bytes
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
    std::vector<Piece> pieces;
    int num_missing = 0;           // pieces that are not there, those on their way included
    std::vector<bool> offered_by;  // by source: it said so
    bool whole = false;
    std::optional<size_t> rest_source;  // the rest comes from this source alone
    std::set<size_t> wrong_rest;        // sources whose rest was wrong
    std::set<size_t> no_rest;           // sources that could not give all of it
    // An earlier life brought all: its bytes count as done when they are read back.
    bool counts_as_read = false;
    std::vector<Suspect> suspects;
    int bad_readings = 0;
  };
  using PieceId = std::pair<size_t, size_t>;  // file, piece
  struct Source {
    std::string name;
    bool listed = false;
    bool is_asked = false;  // for its list
    bool lost = false;
    bool busy = false;  // it last said so
    int failures = 0;   // in a row; of what was under way at one time only one counts
    absl::Duration failed_at = -absl::InfiniteDuration();  // the last that counts
    int reads = 0;                                         // under way
    absl::Duration free_at = -absl::InfiniteDuration();
    std::vector<PieceId> waits;  // pieces of which it has sent a part
    int64_t bytes = 0;
  };

  Piece& At(const PieceId& id) { return files_[id.first].pieces[id.second]; }
  bool AllWhole() const;
  bool MayRead(const Source& source, absl::Duration now) const;
  std::optional<PieceId> Choose(size_t s);
  /// As far as it has said what it has.
  bool MayBring(size_t s, const File& file, const Piece& piece) const;
  bool MayHave(size_t s, const File& file) const;
  bool ChooseRestSource(File& file);
  void NoteAway(size_t s, const absl::Status& why, absl::Duration begun, absl::Duration now);
  void NoteBad(size_t s, File& file, Piece& piece, bool wrong_bytes, const absl::Status& why);
  void Lose(size_t s, const absl::Status& why);
  void FailIfStuck();
  absl::Status NobodyLeft(const File& file, const Piece& piece) const;
  FilePiece Again(File& file, Piece& piece);
  std::vector<FilePiece> ExpertsAreWrong(File& file, const std::vector<int64_t>& bad,
                                         const std::string& path);
  std::vector<FilePiece> RestIsWrong(File& file);
  void NameTheWrong(const File& file) const;

  const Options options_;
  std::vector<Source> sources_;
  std::vector<File> files_;
  std::vector<size_t> complete_;
  int lists_ = 0;  // sources that are being asked
  int64_t done_ = 0;
  int64_t total_ = 0;
  absl::Status failure_;
  absl::Status last_failure_;  // of a source
  FileFetchResult result_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_PIECE_BOARD_H_
