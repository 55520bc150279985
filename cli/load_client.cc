#include "cli/load_client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <cstddef>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "nlohmann/json.hpp"

namespace caravan {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using nlohmann::json;
using tcp = asio::ip::tcp;
using Error = boost::system::error_code;

/// The text of `object[key]`; empty for null and for what is not there.
std::string TextOf(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

/// One request on its own connection. Keeps itself until its end.
class LoadStream : public std::enable_shared_from_this<LoadStream> {
 public:
  LoadStream(asio::io_context& io, const LoadOptions& options, const std::string& body,
             LoadReply* reply, std::function<void()> on_end)
      : socket_(io), reply_(reply), on_end_(std::move(on_end)) {
    request_.method(http::verb::post);
    request_.target("/v1/chat/completions");
    request_.version(11);
    request_.set(http::field::host, options.address);
    request_.set(http::field::content_type, "application/json");
    request_.set(http::field::connection, "close");
    if (!options.api_key.empty()) {
      request_.set(http::field::authorization, absl::StrCat("Bearer ", options.api_key));
    }
    request_.body() = body;
    request_.prepare_payload();
    parser_.body_limit(std::numeric_limits<uint64_t>::max());
  }

  void Start(const tcp::endpoint& endpoint) {
    started_at_ = SteadyClock().Now();
    socket_.async_connect(endpoint, [self = shared_from_this()](const Error& error) {
      if (error) return self->End(error);
      self->Send();
    });
  }

 private:
  void Send() {
    http::async_write(socket_, request_, [self = shared_from_this()](const Error& error, size_t) {
      if (error) return self->End(error);
      self->ReadSome();
    });
  }

  void ReadSome() {
    http::async_read_some(socket_, buffer_, parser_,
                          [self = shared_from_this()](const Error& error, size_t) {
                            if (error) return self->End(error);
                            self->TakeIn();
                          });
  }

  void TakeIn() {
    if (parser_.is_header_done()) {
      reply_->http_status = parser_.get().result_int();
      streams_ = parser_.get()[http::field::content_type] == "text/event-stream";
      if (streams_) TakeEvents();
    }
    if (!parser_.is_done()) return ReadSome();
    if (!streams_) TakeData(parser_.get().body());
    reply_->retry_after = std::string(parser_.get()[http::field::retry_after]);
    End({});
  }

  void TakeEvents() {
    std::string& text = parser_.get().body();
    size_t begin = 0;
    for (size_t end; (end = text.find("\n\n", begin)) != std::string::npos; begin = end + 2) {
      absl::string_view event = absl::string_view(text).substr(begin, end - begin);
      constexpr absl::string_view kData = "data: ";
      if (absl::StartsWith(event, kData)) TakeData(event.substr(kData.size()));
    }
    text.erase(0, begin);
  }

  /// A chunk of a stream, a whole reply, or an error.
  void TakeData(absl::string_view data) {
    const json chunk = json::parse(data.begin(), data.end(), nullptr, /*allow_exceptions=*/false);
    if (!chunk.is_object()) return;  // [DONE]
    if (chunk.contains("error")) reply_->error = TextOf(chunk["error"], "message");
    if (chunk.contains("usage") && chunk["usage"].is_object()) {
      reply_->completion_tokens = chunk["usage"].value("completion_tokens", int64_t{0});
    }
    for (const json& choice : chunk.value("choices", json::array())) {
      const json text = choice.value(streams_ ? "delta" : "message", json::object());
      const std::string thought = TextOf(text, "reasoning_content");
      const std::string answer = TextOf(text, "content");
      if (!thought.empty() || !answer.empty()) CountPiece();
      reply_->thought += thought;
      reply_->answer += answer;
      if (std::string reason = TextOf(choice, "finish_reason"); !reason.empty()) {
        reply_->finish_reason = std::move(reason);
      }
    }
  }

  void CountPiece() {
    const absl::Duration now = SteadyClock().Now();
    if (last_piece_at_.has_value()) {
      reply_->gaps.push_back(now - *last_piece_at_);
    } else {
      reply_->first_text = now - started_at_;
    }
    last_piece_at_ = now;
  }

  void End(const Error& error) {
    if (error && reply_->error.empty()) reply_->error = error.message();
    reply_->whole = SteadyClock().Now() - started_at_;
    Error ignored;
    socket_.close(ignored);
    on_end_();
  }

  tcp::socket socket_;
  http::request<http::string_body> request_;
  boost::beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  LoadReply* const reply_;
  const std::function<void()> on_end_;
  bool streams_ = false;
  absl::Duration started_at_;
  std::optional<absl::Duration> last_piece_at_;
};

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options,
                                   absl::Span<const std::string> bodies) {
  asio::io_context io(1);
  Error error;
  const size_t colon = options.address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", options.address, "\" is no HOST:PORT"));
  }
  const auto found = tcp::resolver(io).resolve(options.address.substr(0, colon),
                                               options.address.substr(colon + 1), error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", options.address, "\" cannot be resolved: ", error.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();

  LoadResult result;
  result.replies.resize(bodies.size());
  const absl::Duration started_at = SteadyClock().Now();
  size_t next = 0;
  size_t ended = 0;
  std::function<void()> start_next = [&] {
    if (next == bodies.size()) return;
    const size_t index = next++;
    std::make_shared<LoadStream>(io, options, bodies[index], &result.replies[index], [&] {
      ++ended;
      start_next();
    })->Start(endpoint);
  };
  for (int i = 0; i < options.concurrency; ++i) start_next();
  io.run_for(absl::ToChronoNanoseconds(options.timeout));
  result.wall = SteadyClock().Now() - started_at;
  if (ended < bodies.size()) {
    return absl::DeadlineExceededError(absl::StrCat(bodies.size() - ended, " of ", bodies.size(),
                                                    " requests did not end within ",
                                                    absl::FormatDuration(options.timeout)));
  }
  return result;
}

}  // namespace caravan
