#include "coordinator/http/http_text.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/buffers_to_string.hpp>
#include <boost/beast/http/chunk_encode.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/write.hpp>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace caravan {
namespace {

namespace http = boost::beast::http;

http::response<http::empty_body> MakeHead(const HttpResponse& response, const HttpFraming& framing,
                                          const HttpHeaders& more_headers) {
  http::response<http::empty_body> head;
  head.version(framing.version);
  head.result(static_cast<unsigned>(response.status));
  head.set(http::field::date,
           absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()));
  if (!response.content_type.empty() && response.status != 204) {
    head.set(http::field::content_type, response.content_type);
  }
  for (const HttpHeaders* headers : {&response.headers, &more_headers}) {
    for (const auto& [name, value] : *headers) head.insert(name, value);
  }
  head.keep_alive(framing.keep_alive);
  return head;
}

std::string HeadText(const http::response<http::empty_body>& head) {
  std::ostringstream text;
  text << head.base();
  return text.str();
}

}  // namespace

HttpRequest ToHttpRequest(const http::request<http::string_body>& message) {
  HttpRequest request;
  request.method = std::string(message.method_string());
  absl::string_view target(message.target().data(), message.target().size());
  for (const absl::string_view scheme : {"http://", "https://"}) {  // RFC 9112, section 3.2.2
    if (!absl::StartsWithIgnoreCase(target, scheme)) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == absl::string_view::npos ? absl::string_view("/") : target.substr(slash);
  }
  const size_t question = target.find('?');
  request.path = std::string(target.substr(0, question));
  if (question != absl::string_view::npos) request.query = std::string(target.substr(question + 1));
  for (const auto& field : message.base()) {
    request.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  return request;
}

std::string ResponseText(const HttpResponse& response, const HttpFraming& framing,
                         const HttpHeaders& more_headers) {
  http::response<http::empty_body> head = MakeHead(response, framing, more_headers);
  const bool has_body = response.status != 204;
  if (has_body) head.content_length(response.body.size());
  std::string text = HeadText(head);
  if (has_body && !framing.head_only) text += response.body;
  return text;
}

std::string StreamHeadText(const HttpResponse& head, const HttpFraming& framing,
                           const HttpHeaders& more_headers) {
  http::response<http::empty_body> message = MakeHead(head, framing, more_headers);
  if (framing.version >= 11) message.chunked(true);
  return HeadText(message);
}

std::string ChunkText(const std::string& bytes) {
  return boost::beast::buffers_to_string(
      http::make_chunk(boost::asio::const_buffer(bytes.data(), bytes.size())));
}

std::string LastChunkText() { return boost::beast::buffers_to_string(http::make_chunk_last()); }

}  // namespace caravan
