#ifndef CARAVAN_TESTS_SUPPORT_RAW_HTTP_CLIENT_H_
#define CARAVAN_TESTS_SUPPORT_RAW_HTTP_CLIENT_H_

// A client that sends the very bytes it is told to, so that it can behave badly.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "base/clock.h"

namespace caravan {

/// One connection. Reading gives up after a deadline far longer than any test needs.
class RawHttpClient {
 public:
  /// `address` is 127.0.0.1:PORT. `receive_buffer`: bytes that the kernel takes in for a reader
  /// that does not read; 0: its default.
  explicit RawHttpClient(const std::string& address, int receive_buffer = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    CARAVAN_CHECK(socket_ >= 0);
    if (receive_buffer > 0) {
      ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + address.rfind(':') + 1)));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CARAVAN_CHECK(::connect(socket_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0);
  }
  ~RawHttpClient() { Close(); }
  RawHttpClient(const RawHttpClient&) = delete;
  RawHttpClient& operator=(const RawHttpClient&) = delete;

  /// False when the server has hung up.
  bool Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }

  /// Sends a request with what every request has; `more` are header lines, each with its \r\n.
  bool SendRequest(const std::string& method, const std::string& target,
                   const std::string& body = "", const std::string& more = "") {
    std::string text = absl::StrCat(method, " ", target, " HTTP/1.1\r\nHost: localhost\r\n", more);
    if (!body.empty()) absl::StrAppend(&text, "Content-Length: ", body.size(), "\r\n");
    return Send(absl::StrCat(text, "\r\n", body));
  }

  /// No more is sent, but the answer is read.
  void HalfClose() { ::shutdown(socket_, SHUT_WR); }
  void Close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

  /// Reads until what was read since the last call holds `text`, and takes all up to its end; what
  /// there is when the server hung up or the deadline passed.
  std::string ReadUntil(const std::string& text) {
    size_t at = 0;
    while ((at = unread_.find(text)) == std::string::npos && ReadSome()) {
    }
    const size_t end = at == std::string::npos ? unread_.size() : at + text.size();
    const std::string taken = unread_.substr(0, end);
    unread_.erase(0, end);
    return taken;
  }

  /// One whole answer with Content-Length: its head and its body.
  std::string ReadAnswer() {
    const std::string head = ReadUntil("\r\n\r\n");
    const size_t field = head.find("Content-Length: ");
    const size_t length =
        field == std::string::npos ? 0 : std::strtoul(head.c_str() + field + 16, nullptr, 10);
    while (unread_.size() < length && ReadSome()) {
    }
    const std::string body = unread_.substr(0, length);
    unread_.erase(0, length);
    return head + body;
  }

  /// All that comes until the server hangs up; adds "[no end]" when it does not.
  std::string ReadToEnd() {
    while (ReadSome()) {
    }
    return std::exchange(unread_, "") + (ended_ ? "" : "[no end]");
  }

 private:
  bool ReadSome() {
    pollfd wait = {socket_, POLLIN, 0};
    const int timeout_ms = 120'000;
    if (::poll(&wait, 1, timeout_ms) <= 0) return false;
    char bytes[4096];
    const ssize_t n = ::recv(socket_, bytes, sizeof(bytes), 0);
    if (n <= 0) {
      ended_ = true;
      return false;
    }
    unread_.append(bytes, static_cast<size_t>(n));
    return true;
  }

  int socket_;
  bool ended_ = false;
  std::string unread_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_RAW_HTTP_CLIENT_H_
