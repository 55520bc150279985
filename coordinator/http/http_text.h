#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_TEXT_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_TEXT_H_

// Requests and answers between Beast's types and ours.

#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <string>

#include "coordinator/http/http_message.h"

namespace caravan {

/// How an answer travels; of the request's making.
struct HttpFraming {
  unsigned version = 11;    // 10 or 11, the request's
  bool keep_alive = false;  // the connection outlives the answer
  bool head_only = false;   // HEAD: the body is left out
};

/// Method, target and headers, without the body.
HttpRequest ToHttpRequest(
    const boost::beast::http::request<boost::beast::http::string_body>& message);

/// A whole answer, with `more_headers`.
std::string ResponseText(const HttpResponse& response, const HttpFraming& framing,
                         const HttpHeaders& more_headers);

/// The head of an answer whose length is not known. In version 11 the body comes in chunks
/// (ChunkText), in version 10 it ends with the connection.
std::string StreamHeadText(const HttpResponse& head, const HttpFraming& framing,
                           const HttpHeaders& more_headers);

/// `bytes` as one chunk. REQUIRES: not empty, which would be the end.
std::string ChunkText(const std::string& bytes);
std::string LastChunkText();

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_TEXT_H_
