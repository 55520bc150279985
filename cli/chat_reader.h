#ifndef CARAVAN_CLI_CHAT_READER_H_
#define CARAVAN_CLI_CHAT_READER_H_

// Lines from a person at a terminal, with editing and history, or from a file or pipe as they are.

#include <memory>
#include <string>

#include "cli/chat_signals.h"

namespace caravan {

/// Used by one thread.
class ChatReader {
 public:
  enum class Result { kLine, kEnd, kInterrupted };

  virtual ~ChatReader() = default;

  /// Waits for a line, without its line break; `prompt` is shown at a terminal only. kInterrupted:
  /// Ctrl-C or SIGTERM came meanwhile (and was taken); what was typed is dropped.
  virtual Result Read(const std::string& prompt, std::string& line) = 0;

  /// The line can be had again with the cursor keys. Nothing happens without a terminal.
  virtual void Remember(const std::string& line) = 0;
};

/// Edits UTF-8 by libedit: cursor keys, words, search with Ctrl-R, wide characters, and what
/// ~/.editrc says. Sets the process's LC_CTYPE. REQUIRES: standard input and output are terminals;
/// one such reader at a time. Borrows `signals`.
std::unique_ptr<ChatReader> NewTerminalChatReader(ChatSignals* signals);

/// Reads standard input. Borrows `signals`.
std::unique_ptr<ChatReader> NewPlainChatReader(ChatSignals* signals);

}  // namespace caravan

#endif  // CARAVAN_CLI_CHAT_READER_H_
