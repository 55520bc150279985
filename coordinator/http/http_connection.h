#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_CONNECTION_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_CONNECTION_H_

// One client's connection: reads requests one after another, hands each to its handler, writes the
// answer, and watches meanwhile whether the client is still there.
//
//   idle --> header --> body --> answering --> idle | lingering --> closed
//
// A client that is too slow in any of these is dropped by a deadline; what else it can cost is
// bounded by HttpLimits. An end of file while an answer is under way means that the client is gone.

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/http/access_policy.h"
#include "coordinator/http/deadline.h"
#include "coordinator/http/http_limits.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/http_observer.h"
#include "coordinator/http/http_text.h"
#include "coordinator/http/router.h"
#include "coordinator/http/socket_writer.h"

namespace caravan {

/// What all connections of a server share. Outlives them.
struct HttpConnectionContext {
  const Router* router = nullptr;
  const AccessPolicy* access = nullptr;
  HttpObserver* observer = nullptr;  // may be null
  HttpLimits limits;
  std::atomic<int64_t> bodies_bytes{0};  // of requests that are being read
  std::atomic<bool> stopping{false};     // answers under way may end, nothing else begins
};

/// Runs on the socket's executor, a strand. Thread-safe are Start, StartRefused, Stop, and what
/// the responders that it hands out do.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  /// Whoever makes it keeps it until `on_closed`, which is called once, on the strand.
  HttpConnection(Socket socket, HttpConnectionContext* context, std::function<void()> on_closed);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void Start();
  /// Answers `refusal` to whatever comes, and closes.
  void StartRefused(const HttpResponse& refusal);
  /// Closes when the answer under way, if any, has ended; at once if `now`.
  void Stop(bool now);

 private:
  class AnswerResponder;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = boost::system::error_code;
  enum class State { kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };

  /// The answer under way.
  struct Answer {
    uint64_t number = 0;  // calls for another answer come too late
    bool begun = false;   // something was said
    bool ended = false;   // all was said, perhaps not yet written
    bool stream = false;
    bool pings = false;  // an event stream that must not fall silent
    bool full = false;   // writable() was false since on_drained
    HttpFraming framing;
    HttpHeaders cors_headers;
    std::function<void()> on_gone;
    std::function<void()> on_drained;
  };

  void Dispatch(std::function<void()> task);

  // Reading.
  void AwaitRequest(absl::Duration timeout);
  void ReadAhead();
  void OnReadAhead(ErrorCode error, size_t bytes);
  void ReadHeader();
  void OnHeader(ErrorCode error);
  /// What is answered instead of reading the body; nullopt: nothing.
  std::optional<HttpResponse> CheckHeader();
  void ReadBody();
  void OnBody(ErrorCode error);
  std::optional<HttpResponse> CheckBody(ErrorCode error);
  void CountBody(int64_t bytes);
  void Handle();

  bool IsUnderWay(uint64_t answer) const;  // of that number, and not all was said

  // Answering. REQUIRES: the answer is under way.
  void BeginAnswer();
  void BeginHead(int status);
  void Send(const HttpResponse& response);
  void StartStream(const HttpResponse& head);
  void WritePiece(const std::string& bytes);
  void Finish();
  void Abandon();
  void EndAnswer();
  /// Answers what the server itself has to say.
  void Refuse(const HttpResponse& response);

  void Write(const std::string& bytes);
  void OnProgress();
  void OnWritten();
  void Linger();
  void Close();

  Socket socket_;
  HttpConnectionContext* const context_;
  const std::function<void()> on_closed_;
  Deadline deadline_;  // of reading; the writer has its own
  Deadline ping_;
  SocketWriter writer_;

  State state_ = State::kIdle;
  boost::beast::flat_buffer buffer_;
  bool reading_ahead_ = false;
  std::optional<Parser> parser_;
  HttpRequest request_;
  const Router::Route* route_ = nullptr;  // null: none serves the request
  int64_t counted_body_bytes_ = 0;
  Answer answer_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_CONNECTION_H_
