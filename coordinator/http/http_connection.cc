#include "coordinator/http/http_connection.h"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

// What is read while an answer is under way, at most. A client that pipelines more than this waits
// in the kernel's buffers.
constexpr size_t kReadAheadBytes = size_t{16} << 10;

// A read takes at most so much of a body at once.
constexpr size_t kMaxBufferBytes = size_t{128} << 10;

// What event streams hold when there is nothing to tell: a comment.
constexpr char kPing[] = ": keep-alive\n\n";

/// Whether the parser, not the socket, complains.
bool IsHttpError(const boost::system::error_code& error) {
  return error.category() == http::make_error_code(http::error::end_of_stream).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

HttpResponse BodyTooLarge(int64_t max_bytes) {
  return ErrorResponse(413, absl::StrCat("the body is larger than ", max_bytes, " bytes"),
                       "body_too_large");
}

}  // namespace

/// Answers one request of a connection that may be gone.
class HttpConnection::AnswerResponder final : public Responder {
 public:
  AnswerResponder(std::shared_ptr<HttpConnection> connection, uint64_t answer)
      : connection_(connection), answer_(answer) {}
  ~AnswerResponder() override {
    // Behind what other threads have said, which may still be on its way here.
    Post([connection = connection_.lock(), answer = answer_] {
      if (connection->IsUnderWay(answer)) connection->Abandon();
    });
  }

  void Send(HttpResponse response) override {
    Do([response = std::move(response)](HttpConnection& connection) { connection.Send(response); });
  }
  void StartStream(HttpResponse head) override {
    Do([head = std::move(head)](HttpConnection& connection) { connection.StartStream(head); });
  }
  void Write(std::string bytes) override {
    Do([bytes = std::move(bytes)](HttpConnection& connection) { connection.WritePiece(bytes); });
  }
  void Finish() override {
    Do([](HttpConnection& connection) { connection.Finish(); });
  }
  bool writable() const override {
    const std::shared_ptr<HttpConnection> connection = connection_.lock();
    return connection != nullptr &&
           connection->writer_.unsent_bytes() <= connection->context_->limits.max_unsent_bytes;
  }
  void SetEvents(std::function<void()> on_gone, std::function<void()> on_drained) override {
    Do([on_gone = std::move(on_gone), on_drained = std::move(on_drained)](HttpConnection& c) {
      c.answer_.on_gone = on_gone;
      c.answer_.on_drained = on_drained;
    });
  }
  void Post(std::function<void()> task) override {
    const std::shared_ptr<HttpConnection> connection = connection_.lock();
    if (connection == nullptr) return;
    asio::post(connection->socket_.get_executor(), std::move(task));
  }

 private:
  /// Runs `task` on the strand, unless the answer has ended before.
  template <typename Task>
  void Do(Task task) const {
    const std::shared_ptr<HttpConnection> connection = connection_.lock();
    if (connection == nullptr) return;
    connection->Dispatch([connection = connection.get(), answer = answer_, task = std::move(task)] {
      if (connection->IsUnderWay(answer)) task(*connection);
    });
  }

  const std::weak_ptr<HttpConnection> connection_;
  const uint64_t answer_;
};

HttpConnection::HttpConnection(Socket socket, HttpConnectionContext* context,
                               std::function<void()> on_closed)
    : socket_(std::move(socket)),
      context_(context),
      on_closed_(std::move(on_closed)),
      deadline_(socket_.get_executor(), [this] { Close(); }),
      ping_(socket_.get_executor(),
            [this] {
              if (answer_.pings && !answer_.ended) WritePiece(kPing);
            }),
      writer_(&socket_, context->limits.write_timeout,
              {[this] { OnWritten(); }, [this] { Close(); }}),
      buffer_(kMaxBufferBytes) {
  writer_.set_on_progress([this] { OnProgress(); });
}

HttpConnection::~HttpConnection() { CountBody(0); }

void HttpConnection::Dispatch(std::function<void()> task) {
  asio::dispatch(socket_.get_executor(),
                 [self = shared_from_this(), task = std::move(task)] { task(); });
}

bool HttpConnection::IsUnderWay(uint64_t answer) const {
  return state_ == State::kAnswering && answer_.number == answer && !answer_.ended;
}

void HttpConnection::Start() {
  Dispatch([this] { AwaitRequest(context_->limits.header_timeout); });
}

void HttpConnection::StartRefused(const HttpResponse& refusal) {
  Dispatch([this, refusal] { Refuse(refusal); });
}

void HttpConnection::Stop(bool now) {
  Dispatch([this, now] {
    answer_.framing.keep_alive = false;
    if (now || state_ == State::kIdle || state_ == State::kHeader || state_ == State::kBody) {
      Close();
    }
  });
}

// ---- Reading

void HttpConnection::AwaitRequest(absl::Duration timeout) {
  if (state_ == State::kClosed) return;  // stopped before it started
  state_ = State::kIdle;
  if (context_->stopping) return Close();
  deadline_.Set(timeout, weak_from_this());
  if (buffer_.size() == 0) return ReadAhead();
  if (!reading_ahead_) return ReadHeader();
  ErrorCode ignored;
  socket_.cancel(ignored);  // one read at a time: OnReadAhead goes on
}

void HttpConnection::ReadAhead() {
  if (reading_ahead_ || (state_ == State::kAnswering && buffer_.size() >= kReadAheadBytes)) return;
  reading_ahead_ = true;
  socket_.async_read_some(buffer_.prepare(kReadAheadBytes),
                          [self = shared_from_this()](ErrorCode error, size_t bytes) {
                            self->OnReadAhead(error, bytes);
                          });
}

void HttpConnection::OnReadAhead(ErrorCode error, size_t bytes) {
  reading_ahead_ = false;
  if (state_ == State::kClosed) return;
  if (error == asio::error::eof && state_ == State::kAnswering && answer_.ended) {
    answer_.framing.keep_alive = false;  // it may still be listening to what is being written
    return;
  }
  const bool only_cancelled = error == asio::error::operation_aborted && buffer_.size() > 0;
  if (error && !only_cancelled) return Close();
  buffer_.commit(bytes);
  if (state_ == State::kLingering) buffer_.consume(buffer_.size());
  if (state_ == State::kIdle) return ReadHeader();
  ReadAhead();
}

void HttpConnection::ReadHeader() {
  state_ = State::kHeader;
  deadline_.Set(context_->limits.header_timeout, weak_from_this());
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(context_->limits.max_header_bytes));
  parser_->body_limit(INT64_MAX);  // the limit is the route's, which is not known yet
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](ErrorCode error, size_t) { self->OnHeader(error); });
}

void HttpConnection::OnHeader(ErrorCode error) {
  if (state_ == State::kClosed) return;
  answer_.framing = {};
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Refuse(ErrorResponse(431, absl::StrCat("the request's header is larger than ",
                                                  context_->limits.max_header_bytes, " bytes")));
  }
  if (IsHttpError(error)) {
    return Refuse(ErrorResponse(400, absl::StrCat("not an HTTP request: ", error.message())));
  }
  if (error) return Close();
  const auto& message = parser_->get();
  request_ = ToHttpRequest(message);
  answer_.framing.version = message.version();
  answer_.framing.head_only = request_.method == "HEAD";
  answer_.framing.keep_alive = message.keep_alive() && !context_->stopping;
  if (const std::optional<HttpResponse> refusal = CheckHeader()) {
    // What follows of a body is not worth reading.
    answer_.framing.keep_alive = answer_.framing.keep_alive && parser_->is_done();
    return Refuse(*refusal);
  }
  state_ = State::kBody;
  if (absl::EqualsIgnoreCase(request_.Header("Expect"), "100-continue")) {
    Write("HTTP/1.1 100 Continue\r\n\r\n");
  }
  const auto length = static_cast<int64_t>(parser_->content_length().value_or(0));
  deadline_.Set(context_->limits.body_timeout + absl::Seconds(length / kSlowestBodyBytesPerSecond),
                weak_from_this());
  ReadBody();
}

std::optional<HttpResponse> HttpConnection::CheckHeader() {
  Router::Match match = context_->router->Find(request_.method, request_.path);
  if (request_.method == "OPTIONS") {
    HttpResponse allowed;
    allowed.status = 204;
    if (!match.allowed_methods.empty()) allowed.headers = {{"Allow", match.allowed_methods}};
    return allowed;
  }
  // Before 404 and 405, so that who has no key does not learn what there is.
  if (match.route == nullptr || !match.route->options.open) {
    const absl::Status access = context_->access->Check(request_);
    if (!access.ok()) return ErrorResponse(access);
  }
  if (match.route == nullptr) {
    if (match.allowed_methods.empty()) {
      return ErrorResponse(404, absl::StrCat("nothing is served at ", request_.path), "not_found");
    }
    HttpResponse response = ErrorResponse(
        405,
        absl::StrCat(request_.path, " serves ", match.allowed_methods, ", not ", request_.method));
    response.headers.emplace_back("Allow", match.allowed_methods);
    return response;
  }
  route_ = match.route;
  request_.path_parameters = std::move(match.path_parameters);
  const int64_t max_body = route_->options.max_body_bytes;
  if (parser_->content_length().value_or(0) > static_cast<uint64_t>(max_body)) {
    return BodyTooLarge(max_body);
  }
  return std::nullopt;
}

void HttpConnection::ReadBody() {
  if (parser_->is_done()) return Handle();
  http::async_read_some(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](ErrorCode error, size_t) { self->OnBody(error); });
}

void HttpConnection::OnBody(ErrorCode error) {
  if (state_ == State::kClosed) return;
  if (error && !IsHttpError(error)) return Close();
  if (const std::optional<HttpResponse> refusal = CheckBody(error)) {
    answer_.framing.keep_alive = false;
    return Refuse(*refusal);
  }
  ReadBody();
}

std::optional<HttpResponse> HttpConnection::CheckBody(ErrorCode error) {
  if (error) return ErrorResponse(400, absl::StrCat("not an HTTP body: ", error.message()));
  CountBody(static_cast<int64_t>(parser_->get().body().size()));
  const int64_t max_body = route_->options.max_body_bytes;
  if (counted_body_bytes_ > max_body) return BodyTooLarge(max_body);  // in chunks: known only now
  if (context_->bodies_bytes > context_->limits.max_bodies_bytes) {
    return ErrorResponse(503, "too many large requests are being read", "overloaded");
  }
  return std::nullopt;
}

void HttpConnection::CountBody(int64_t bytes) {
  context_->bodies_bytes += bytes - counted_body_bytes_;
  counted_body_bytes_ = bytes;
}

void HttpConnection::Handle() {
  request_.body = std::move(parser_->get().body());
  BeginAnswer();
  auto responder = std::make_shared<AnswerResponder>(shared_from_this(), answer_.number);
  route_->handler(std::exchange(request_, {}), std::move(responder));
}

// ---- Answering

void HttpConnection::BeginAnswer() {
  parser_.reset();
  CountBody(0);
  deadline_.Clear();
  state_ = State::kAnswering;
  answer_.number++;
  answer_.begun = answer_.ended = answer_.stream = answer_.pings = answer_.full = false;
  answer_.cors_headers = context_->access->CorsHeaders(request_);
  ReadAhead();  // learns when the client goes
}

void HttpConnection::BeginHead(int status) {
  answer_.begun = true;
  // The order to stop may still be on its way here.
  if (context_->stopping) answer_.framing.keep_alive = false;
  if (context_->observer == nullptr) return;
  context_->observer->OnAnswered(route_ == nullptr ? "" : route_->pattern, status);
}

void HttpConnection::Send(const HttpResponse& response) {
  if (answer_.begun) return;
  BeginHead(response.status);
  Write(ResponseText(response, answer_.framing, answer_.cors_headers));
  EndAnswer();
}

void HttpConnection::StartStream(const HttpResponse& head) {
  if (answer_.begun) return;
  BeginHead(head.status);
  answer_.stream = true;
  // HTTP/1.0 has no chunks: the connection's end is the body's.
  if (answer_.framing.version < 11) answer_.framing.keep_alive = false;
  answer_.pings = absl::StartsWith(head.content_type, "text/event-stream");
  Write(StreamHeadText(head, answer_.framing, answer_.cors_headers));
  if (answer_.framing.head_only) return Finish();
  WritePiece(head.body);
  if (answer_.pings) ping_.Set(context_->limits.ping_interval, weak_from_this());
}

void HttpConnection::WritePiece(const std::string& bytes) {
  if (!answer_.stream || bytes.empty()) return;
  Write(answer_.framing.version < 11 ? bytes : ChunkText(bytes));
  if (answer_.pings) ping_.Set(context_->limits.ping_interval, weak_from_this());
  if (writer_.unsent_bytes() > context_->limits.max_unsent_bytes) answer_.full = true;
}

void HttpConnection::Finish() {
  if (!answer_.stream) return;
  if (answer_.framing.version >= 11 && !answer_.framing.head_only) Write(LastChunkText());
  EndAnswer();
}

void HttpConnection::Abandon() {
  if (!answer_.begun) return Send(ErrorResponse(500, "the request was dropped", "internal_error"));
  Close();  // in the midst of a stream: its missing end tells the client
}

void HttpConnection::EndAnswer() {
  answer_.ended = true;
  ping_.Clear();
  // Destroyed on leaving: they may own what called us, and that may own a lot.
  const std::function<void()> on_gone = std::exchange(answer_.on_gone, nullptr);
  const std::function<void()> on_drained = std::exchange(answer_.on_drained, nullptr);
  route_ = nullptr;
  if (writer_.unsent_bytes() == 0) OnWritten();
}

void HttpConnection::Refuse(const HttpResponse& response) {
  if (state_ == State::kClosed) return;
  BeginAnswer();
  Send(response);
}

// ---- Writing and leaving

void HttpConnection::Write(const std::string& bytes) { writer_.Write(bytes, shared_from_this()); }

void HttpConnection::OnProgress() {
  if (!answer_.full || writer_.unsent_bytes() > context_->limits.max_unsent_bytes) return;
  answer_.full = false;
  const std::function<void()> on_drained = answer_.on_drained;  // may be dropped by what it calls
  if (on_drained != nullptr) on_drained();
}

void HttpConnection::OnWritten() {
  if (state_ != State::kAnswering || !answer_.ended) return;
  if (answer_.framing.keep_alive) return AwaitRequest(context_->limits.idle_timeout);
  Linger();
}

void HttpConnection::Linger() {
  // Closing with unread bytes would reset the connection, and the answer might be lost on the way.
  state_ = State::kLingering;
  ErrorCode ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  buffer_.consume(buffer_.size());
  deadline_.Set(context_->limits.linger_timeout, weak_from_this());
  ReadAhead();
}

void HttpConnection::Close() {
  if (state_ == State::kClosed) return;
  const std::shared_ptr<HttpConnection> self = shared_from_this();
  const bool answering = state_ == State::kAnswering && !answer_.ended;
  state_ = State::kClosed;
  deadline_.Cancel();
  ping_.Cancel();
  writer_.Close();
  ErrorCode ignored;
  socket_.close(ignored);
  const std::function<void()> on_gone = std::exchange(answer_.on_gone, nullptr);
  const std::function<void()> on_drained = std::exchange(answer_.on_drained, nullptr);
  if (answering && on_gone != nullptr) on_gone();
  on_closed_();
}

}  // namespace caravan
