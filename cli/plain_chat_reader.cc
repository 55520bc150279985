// Lines of standard input as they are: the other side of chat_reader.h.

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "cli/chat_reader.h"

namespace caravan {
namespace {

class PlainChatReader final : public ChatReader {
 public:
  explicit PlainChatReader(ChatSignals* signals) : signals_(signals) {}

  Result Read(const std::string& /*prompt*/, std::string& line) override {
    while (true) {
      const size_t end = unread_.find('\n', searched_);
      if (end != std::string::npos) {
        line = unread_.substr(0, end);
        unread_.erase(0, end + 1);
        searched_ = 0;
        return Result::kLine;
      }
      searched_ = unread_.size();
      pollfd wait[2] = {{STDIN_FILENO, POLLIN, 0}, {signals_->fd(), POLLIN, 0}};
      if (::poll(wait, 2, -1) < 0 && errno == EINTR) continue;
      if (wait[1].revents != 0) {
        const ChatSignals::Events events = signals_->Take();
        if (events.interrupted || events.terminated) return Result::kInterrupted;
        continue;  // a terminal's changes mean nothing here
      }
      char bytes[4096];
      const ssize_t got = ::read(STDIN_FILENO, bytes, sizeof(bytes));
      if (got > 0) {
        unread_.append(bytes, static_cast<size_t>(got));
        continue;
      }
      if (unread_.empty()) return Result::kEnd;
      line.swap(unread_);  // the last line may lack its line break
      unread_.clear();
      searched_ = 0;
      return Result::kLine;
    }
  }

  void Remember(const std::string& /*line*/) override {}

 private:
  ChatSignals* const signals_;
  std::string unread_;
  size_t searched_ = 0;  // so far of unread_ there is no line break
};

}  // namespace

std::unique_ptr<ChatReader> NewPlainChatReader(ChatSignals* signals) {
  return std::make_unique<PlainChatReader>(signals);
}

}  // namespace caravan
