#ifndef CARAVAN_CLI_LOAD_CLIENT_H_
#define CARAVAN_CLI_LOAD_CLIENT_H_

// Many clients of an OpenAI server at once, on one thread: asks, reads every stream to its end, and
// times what comes. For benchmarks, and for tests of many streams.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace caravan {

/// What came of one request to /v1/chat/completions, with "stream": true or without.
struct LoadReply {
  int http_status = 0;            // 0: the connection failed
  std::string error;              // of the connection, or the server's message; empty: none
  std::string retry_after;        // the header, if there is one
  std::string thought;            // all of reasoning_content
  std::string answer;             // all of content
  std::string finish_reason;      // empty: the stream did not come to its end
  int64_t completion_tokens = 0;  // as the usage says; a stream has to ask for it

  absl::Duration first_text;         // from the request's sending to the first piece of text
  std::vector<absl::Duration> gaps;  // between two pieces of text
  absl::Duration whole;              // from the request's sending to the end
};

struct LoadOptions {
  std::string address;                         // HOST:PORT
  std::string api_key;                         // empty: none is shown
  int concurrency = 1;                         // connections at a time; each request has its own
  absl::Duration timeout = absl::Minutes(10);  // for all of it together
};

struct LoadResult {
  std::vector<LoadReply> replies;  // one for each body, in order
  absl::Duration wall;             // from the first request to the last reply's end
};

/// Sends each of `bodies` (JSON), `concurrency` at a time, and waits for all.
/// Errors: InvalidArgument - the address cannot be resolved; DeadlineExceeded - not all ended in
///         time. What goes wrong with one request stands in its reply.
absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options,
                                   absl::Span<const std::string> bodies);

}  // namespace caravan

#endif  // CARAVAN_CLI_LOAD_CLIENT_H_
