#ifndef CARAVAN_CLI_CONVERSATION_H_
#define CARAVAN_CLI_CONVERSATION_H_

// A dialogue with a model: what was said so far, and what a line typed by a person means.

#include <string>
#include <vector>

#include "caravan/v1/jobs.pb.h"
#include "cli/generation_flags.h"

namespace caravan {

/// Not thread-safe.
class Conversation {
 public:
  /// flags.system is its first system text.
  explicit Conversation(GenerationFlags flags) : flags_(std::move(flags)) {}

  /// Asks `message` behind all that was said.
  v1::SubmitRequest Ask(const std::string& message) const;

  /// `answer` without its thought, which no later prompt repeats.
  void Add(std::string message, std::string answer);

  /// Forgets all but the system text.
  void Clear() { turns_.clear(); }

  /// Counts from the next Ask on; empty: none.
  void set_system(std::string text) { flags_.system = std::move(text); }

 private:
  struct Turn {
    std::string message;
    std::string answer;
  };

  GenerationFlags flags_;
  std::vector<Turn> turns_;
};

enum class ChatInputKind {
  kNothing,  // blanks
  kMessage,
  kHelp,
  kNew,
  kSystem,
  kQuit,
  kUnknown,  // a command that there is not
};

struct ChatInput {
  ChatInputKind kind = ChatInputKind::kNothing;
  std::string text;  // of kMessage and kSystem; the word of kUnknown
};

/// A line that begins with / is a command; // makes a message that begins with /.
ChatInput ParseChatInput(const std::string& line);

/// What /help says.
std::string ChatHelp();

}  // namespace caravan

#endif  // CARAVAN_CLI_CONVERSATION_H_
