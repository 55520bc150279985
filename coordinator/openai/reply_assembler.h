#ifndef CARAVAN_COORDINATOR_OPENAI_REPLY_ASSEMBLER_H_
#define CARAVAN_COORDINATOR_OPENAI_REPLY_ASSEMBLER_H_

// Makes one choice's text of what its job yields: thought and answer told apart, cut at the first
// stop string, each token beside the text that it stands for.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "coordinator/job.h"
#include "coordinator/openai/stop_matcher.h"
#include "model/reply_stream.h"
#include "model/scored_token.h"
#include "model/text_model.h"
#include "model/utf8_stream.h"

namespace caravan {

struct ReplyToken {
  ScoredToken scored;
  bool has_score = true;    // false: the first token of all has nothing before it
  int64_t text_offset = 0;  // in characters (code points), of the whole text
};

/// What the reply grew by; of one part.
struct ReplyPiece {
  ReplyPart part = ReplyPart::kAnswer;
  std::string text;
  std::vector<ReplyToken> tokens;
};

/// Not thread-safe.
class ReplyAssembler {
 public:
  struct Options {
    /// A chat's: the thought is a part of its own, its marks are no text, and stop strings are
    /// looked for in the answer only. Otherwise all is answer, with every token that is not
    /// special.
    bool is_chat = true;
    std::vector<std::string> stop;
    int64_t text_offset = 0;  // of the first token
  };

  /// Borrows `text`.
  ReplyAssembler(const TextModel& text, const Options& options);

  /// What becomes known with it: a piece a part. Nothing after the end.
  std::vector<ReplyPiece> Push(const JobUpdate& update);

  /// The end has come: the job's, or a stop string. Its job may then be cancelled.
  bool done() const { return done_; }
  /// "stop" or "length". REQUIRES: done().
  const char* finish_reason() const { return finish_reason_; }

  int64_t num_tokens() const { return num_tokens_; }  // up to the one that ended a stop string
  int64_t num_thought_tokens() const { return num_thought_tokens_; }

 private:
  struct WaitingToken {
    ReplyToken token;
    ReplyPart part;
    size_t begin;  // of its text, in bytes of all the text
    size_t end;
  };

  std::vector<ReplyDelta> Deltas(int32_t token_id);
  void TakeIn(const ScoredToken& token, std::vector<ReplyPiece>& pieces);
  void TakeText(ReplyPart part, const std::string& text, std::vector<ReplyPiece>& pieces);
  void Release(ReplyPart part, const std::string& text, std::vector<ReplyPiece>& pieces);
  void End(const char* reason, std::vector<ReplyPiece>& pieces);

  const TextModel& text_;
  const Options options_;
  ReplyStream stream_;  // a chat's
  Utf8Stream utf8_;     // otherwise
  StopMatcher stops_;
  ReplyPart part_ = ReplyPart::kAnswer;  // of the last delta

  std::deque<WaitingToken> waiting_;  // their text is held back
  size_t received_bytes_ = 0;         // of text
  size_t released_bytes_ = 0;
  int64_t received_characters_ = 0;

  bool done_ = false;
  const char* finish_reason_ = "";
  int64_t num_tokens_ = 0;
  int64_t num_thought_tokens_ = 0;
};

/// Code points in `text`, which is valid UTF-8.
int64_t CountCharacters(const std::string& text);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_REPLY_ASSEMBLER_H_
