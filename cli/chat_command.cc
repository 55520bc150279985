// caravan chat: a dialogue with the model, line by line.

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cli/ask.h"
#include "cli/chat_history.h"
#include "cli/chat_reader.h"
#include "cli/chat_signals.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/conversation.h"
#include "cli/generation_flags.h"
#include "cli/reply_printer.h"

namespace caravan {
namespace {

constexpr char kPrompt[] = "> ";
constexpr char kContinuationPrompt[] = "... ";

struct ChatFlags {
  ClientFlags client;
  GenerationFlags generation;
  bool no_history = false;
};

/// What is not part of the dialogue goes to standard error, so that a pipe gets replies only.
void Note(absl::string_view text) {
  std::fputs(absl::StrCat(text, "\n").c_str(), stderr);
  std::fflush(stderr);
}

class ChatSession {
 public:
  ChatSession(const ChatFlags& flags, ChatSignals* signals, std::shared_ptr<grpc::Channel> channel)
      : flags_(flags),
        signals_(signals),
        channel_(std::move(channel)),
        interactive_(::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1),
        reader_(interactive_ ? NewTerminalChatReader(signals) : NewPlainChatReader(signals)),
        conversation_(flags.generation) {}

  /// The exit code.
  int Run() {
    if (interactive_) {
      LoadHistory();
      Note(absl::StrCat("Connected to ", flags_.client.coordinator,
                        ". /help lists the commands, Ctrl-D leaves."));
    }
    while (true) {
      std::string line;
      switch (ReadMessage(line)) {
        case ChatReader::Result::kEnd:
          return kExitOk;
        case ChatReader::Result::kInterrupted:
          if (signals_->Take().terminated || LeavesAfterInterrupt()) return kExitInterrupted;
          continue;
        case ChatReader::Result::kLine:
          break;
      }
      interrupts_ = 0;
      const ChatInput input = ParseChatInput(line);
      if (input.kind == ChatInputKind::kQuit) return kExitOk;
      const absl::Status status = Heed(input);
      const ChatSignals::Events events = signals_->Take();
      if (events.terminated) return kExitInterrupted;
      if (status.ok()) continue;
      if (events.interrupted) {
        if (LeavesAfterInterrupt()) return kExitInterrupted;
        continue;
      }
      const int code = ReportStatus(status);
      if (!interactive_) return code;  // a script must learn of it
    }
  }

 private:
  /// Lines that end with a backslash go on with the next.
  ChatReader::Result ReadMessage(std::string& message) {
    message.clear();
    std::string line;
    while (true) {
      const ChatReader::Result result =
          reader_->Read(message.empty() ? kPrompt : kContinuationPrompt, line);
      if (result == ChatReader::Result::kInterrupted) return result;
      if (result == ChatReader::Result::kEnd) {
        return message.empty() ? result : ChatReader::Result::kLine;
      }
      if (ParseChatInput(line).kind != ChatInputKind::kNothing) Remember(line);
      message += line;
      if (!absl::EndsWith(line, "\\")) return result;
      message.back() = '\n';
    }
  }

  void LoadHistory() {
    const std::string path = flags_.no_history ? "" : ChatHistory::DefaultPath();
    if (path.empty()) return;
    absl::StatusOr<ChatHistory> history = ChatHistory::Open(path);
    if (!history.ok()) {
      return Note(absl::StrCat("No history is kept: ", history.status().message()));
    }
    for (const std::string& line : history->lines()) reader_->Remember(line);
    history_ = *std::move(history);
  }

  void Remember(const std::string& line) {
    reader_->Remember(line);
    if (!history_.has_value()) return;
    const absl::Status kept = history_->Append(line);
    if (kept.ok()) return;
    history_.reset();
    Note(absl::StrCat("History is no longer kept: ", kept.message()));
  }

  /// Errors: InvalidArgument - no such command; as Ask.
  absl::Status Heed(const ChatInput& input) {
    switch (input.kind) {
      case ChatInputKind::kMessage:
        return Converse(input.text);
      case ChatInputKind::kHelp:
        std::fputs(ChatHelp().c_str(), stderr);
        break;
      case ChatInputKind::kNew:
        conversation_.Clear();
        Note("A new conversation.");
        break;
      case ChatInputKind::kSystem:
        conversation_.set_system(input.text);
        Note(input.text.empty() ? "No system text." : "The system text is set.");
        break;
      case ChatInputKind::kUnknown:
        return absl::InvalidArgumentError(
            absl::StrCat("there is no command ", input.text, "; see /help"));
      case ChatInputKind::kNothing:
      case ChatInputKind::kQuit:
        break;
    }
    return absl::OkStatus();
  }

  absl::Status Converse(const std::string& message) {
    const std::stop_token stop = signals_->NewScope();
    CARAVAN_RETURN_IF_ERROR(WaitUntilConnected(*channel_, flags_.client, stop));
    Reply reply;
    const absl::Status status =
        Ask(channel_, flags_.client, conversation_.Ask(message), stop, printer_, reply);
    // A reply that was cut short by Ctrl-C was read as far as it went; another failure is asked
    // anew.
    if ((status.ok() || absl::IsCancelled(status)) && !reply.answer.empty()) {
      conversation_.Add(message, reply.answer);
    }
    if (status.ok() && reply.finished.reason() == v1::FINISH_REASON_LENGTH) {
      Note("(cut at the limit of --max-tokens or of the context)");
    }
    return status;
  }

  /// Called after each Ctrl-C: the second in a row leaves.
  bool LeavesAfterInterrupt() {
    if (!interactive_ || ++interrupts_ >= 2) return true;
    Note("Ctrl-C once more, or Ctrl-D, leaves.");
    return false;
  }

  const ChatFlags& flags_;
  ChatSignals* const signals_;
  const std::shared_ptr<grpc::Channel> channel_;
  const bool interactive_;
  const std::unique_ptr<ChatReader> reader_;
  Conversation conversation_;
  std::optional<ChatHistory> history_;
  ReplyPrinter printer_;
  int interrupts_ = 0;  // since the last line
};

int Chat(const ChatFlags& flags) {
  ChatSignals signals;
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      Connect(flags.client, signals.NewScope());
  if (!channel.ok()) return ReportStatus(channel.status());
  return ChatSession(flags, &signals, *std::move(channel)).Run();
}

}  // namespace

void AddChatCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "chat", "Talk with the model, line by line; /help in it lists its commands");
  const auto flags = std::make_shared<ChatFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  flags->generation.AddTo(*command);
  command->add_flag("--no-history", flags->no_history,
                    "Neither read nor keep the lines that were typed; else they are kept in "
                    "$XDG_STATE_HOME/caravan/chat_history, by default under ~/.local/state");
  command->callback([flags, &body] { body = [flags] { return Chat(*flags); }; });
}

}  // namespace caravan
