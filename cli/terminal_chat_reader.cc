// libedit's side of chat_reader.h.

#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstring>
#include <cwchar>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "cli/chat_reader.h"

namespace caravan {
namespace {

constexpr int kHistoryLines = 1000;

/// libedit works on wide characters, and turns bytes into them as the locale says.
void UseUtf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}

class TerminalChatReader final : public ChatReader {
 public:
  explicit TerminalChatReader(ChatSignals* signals) : signals_(signals) {
    UseUtf8();
    editor_ = ::el_init("caravan", stdin, stdout, stderr);
    history_ = ::history_init();
    CARAVAN_CHECK(editor_ != nullptr && history_ != nullptr);
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, kHistoryLines);
    ::history(history_, &event, H_SETUNIQUE, 1);
    ::el_set(editor_, EL_CLIENTDATA, this);
    ::el_set(editor_, EL_EDITOR, "emacs");
    ::el_set(editor_, EL_PROMPT, &Prompt);
    ::el_set(editor_, EL_HIST, &::history, history_);
    ::el_set(editor_, EL_GETCFN, &GetCharacter);
    // Where the terminal can shift what is behind the cursor, libedit lets it, and goes wrong by a
    // column for characters of two. Without these it writes the rest of the line anew.
    for (const char* capability : {"ic", "IC", "im", "dc", "DC", "dm"}) {
      ::el_set(editor_, EL_SETTC, capability, "", nullptr);
    }
    Bind("^R", "em-inc-search-prev");
    Bind("\\e[1;5C", "em-next-word");  // Ctrl and a cursor key
    Bind("\\e[1;5D", "ed-prev-word");
    Bind("\\e[3~", "ed-delete-next-char");
    ::el_source(editor_, nullptr);
  }

  ~TerminalChatReader() override {
    ::el_end(editor_);
    ::history_end(history_);
  }

  Result Read(const std::string& prompt, std::string& line) override {
    prompt_ = prompt;
    interrupted_ = false;
    // By itself libedit takes the terminal after it has written the prompt, and what is typed in
    // between is the terminal's to edit.
    ::el_set(editor_, EL_PREP_TERM, 1);
    int count = 0;
    const char* const text = ::el_gets(editor_, &count);
    if (interrupted_) {
      std::fputs("^C\033[J\n", stdout);  // without what lies behind the cursor
      std::fflush(stdout);
      return Result::kInterrupted;
    }
    if (text == nullptr || count <= 0) {
      std::fputc('\n', stdout);
      return Result::kEnd;
    }
    line =
        std::string(absl::StripSuffix(absl::string_view(text, static_cast<size_t>(count)), "\n"));
    return Result::kLine;
  }

  void Remember(const std::string& line) override {
    HistEvent event;
    ::history(history_, &event, H_ENTER, line.c_str());
  }

 private:
  void Bind(const char* key, const char* command) {
    ::el_set(editor_, EL_BIND, key, command, nullptr);
  }

  static TerminalChatReader* Self(EditLine* editor) {
    void* self = nullptr;
    ::el_get(editor, EL_CLIENTDATA, &self);
    return static_cast<TerminalChatReader*>(self);
  }

  static char* Prompt(EditLine* editor) { return Self(editor)->prompt_.data(); }

  /// As libedit wants it: 1 with a character, 0 at the end, -1 when there will be none.
  static int GetCharacter(EditLine* editor, wchar_t* character) {
    return Self(editor)->ReadCharacter(character);
  }

  int ReadCharacter(wchar_t* character) {
    std::mbstate_t state = {};
    while (true) {
      pollfd wait[2] = {{STDIN_FILENO, POLLIN, 0}, {signals_->fd(), POLLIN, 0}};
      if (::poll(wait, 2, -1) < 0) {
        if (errno == EINTR) continue;
        return -1;
      }
      if (wait[1].revents != 0 && !HeedSignals()) return -1;
      if (wait[0].revents == 0) continue;
      char byte = 0;
      const ssize_t got = ::read(STDIN_FILENO, &byte, 1);
      if (got <= 0) return static_cast<int>(got);
      switch (std::mbrtowc(character, &byte, 1, &state)) {
        case 0:
        case 1:
          return 1;
        case static_cast<size_t>(-1):
          state = {};  // not UTF-8: as if it had not been typed
          break;
        default:
          break;  // the character's first bytes
      }
    }
  }

  /// False: the line is over.
  bool HeedSignals() {
    const ChatSignals::Events events = signals_->Take();
    if (events.interrupted || events.terminated) {
      interrupted_ = true;
      errno = EINTR;
      return false;
    }
    if (events.continued) {
      // The shell had the terminal meanwhile; libedit believes that nothing has changed.
      ::el_set(editor_, EL_PREP_TERM, 0);
      ::el_set(editor_, EL_PREP_TERM, 1);
    }
    if (events.resized) ::el_resize(editor_);
    ::el_set(editor_, EL_REFRESH);
    return true;
  }

  ChatSignals* const signals_;
  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  std::string prompt_;
  bool interrupted_ = false;
};

}  // namespace

std::unique_ptr<ChatReader> NewTerminalChatReader(ChatSignals* signals) {
  return std::make_unique<TerminalChatReader>(signals);
}

}  // namespace caravan
