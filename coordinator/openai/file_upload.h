#ifndef CARAVAN_COORDINATOR_OPENAI_FILE_UPLOAD_H_
#define CARAVAN_COORDINATOR_OPENAI_FILE_UPLOAD_H_

// A request of POST /v1/files: a form with the fields `purpose` and `file`.

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/batch/batch_book.h"
#include "coordinator/http/http_message.h"

namespace caravan {

struct FileUpload {
  BatchBook::NewFile file;
  absl::string_view content;  // borrowed from the request's body
};

/// Errors: InvalidArgument - as ParseMultipartForm; a field that is missing, twice there, or not
///         one of a file's ("param" names it); a file without a name or without content.
absl::StatusOr<FileUpload> ParseFileUpload(const HttpRequest& request);

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_FILE_UPLOAD_H_
