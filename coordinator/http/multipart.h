#ifndef CARAVAN_COORDINATOR_HTTP_MULTIPART_H_
#define CARAVAN_COORDINATOR_HTTP_MULTIPART_H_

// Reads a body of multipart/form-data (RFC 7578, in the frame of RFC 2046, section 5.1), the form
// in which files are uploaded.
//
//   body      = preamble? delimiter part (delimiter part)* last-delimiter epilogue?
//   delimiter = CRLF "--" boundary blanks CRLF      the first one may begin the body
//   last      = CRLF "--" boundary "--"
//   part      = (header CRLF)* CRLF content

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// One field of a form.
struct FormPart {
  std::string name;
  std::optional<std::string> filename;  // of a file
  absl::string_view content;            // borrowed from the body
};

/// The parts of `body`, in order. `content_type` is the request's Content-Type. Takes time in
/// proportion to the body, and copies no content.
/// Errors: InvalidArgument - not multipart/form-data, no boundary or a malformed one, no delimiter
///         or no last one, a part with a malformed header, without a name or with more than 16 KiB
///         of headers, or more than 64 parts. Each says which part (counted from 1).
absl::StatusOr<std::vector<FormPart>> ParseMultipartForm(absl::string_view content_type,
                                                         absl::string_view body);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_MULTIPART_H_
