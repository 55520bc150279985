#ifndef CARAVAN_COORDINATOR_HTTP_HTTP_MESSAGE_H_
#define CARAVAN_COORDINATOR_HTTP_HTTP_MESSAGE_H_

// A request and its answer, as handlers see them: no sockets, no framing.

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Of a request's body, where its route says nothing else.
inline constexpr int64_t kMaxBodyBytes = int64_t{16} << 20;

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;  // as the client wrote it, such as "GET"
  std::string path;    // of the target, still percent-encoded; begins with / (or is *)
  std::string query;   // what follows the ?, undecoded
  HttpHeaders headers;
  std::string body;
  std::vector<std::string> path_parameters;  // what the route's {} matched, decoded, in order

  /// The first such header's value; empty when there is none. Case does not matter in names.
  absl::string_view Header(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (absl::EqualsIgnoreCase(key, name)) return value;
    }
    return "";
  }
};

/// Content-Length, Date, Connection and the like are the server's business.
struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers = {};
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_HTTP_MESSAGE_H_
