#include "coordinator/openai/file_upload.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/status_macros.h"
#include "coordinator/http/multipart.h"
#include "coordinator/openai/request_fields.h"

namespace caravan {
namespace {

// What a batch is made of. Files for other purposes would only lie about.
constexpr char kPurpose[] = "batch";

/// The form's one field of that name.
absl::StatusOr<const FormPart*> FindField(const std::vector<FormPart>& form,
                                          const std::string& name) {
  const FormPart* found = nullptr;
  for (const FormPart& part : form) {
    if (part.name != name) continue;
    if (found != nullptr) return ParamError(name, "is given twice");
    found = &part;
  }
  if (found == nullptr) return ParamError(name, "is missing in the form");
  return found;
}

}  // namespace

absl::StatusOr<FileUpload> ParseFileUpload(const HttpRequest& request) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<FormPart> form,
                           ParseMultipartForm(request.Header("Content-Type"), request.body));
  for (const FormPart& part : form) {
    if (part.name == "file" || part.name == "purpose") continue;
    return ParamError(part.name, absl::StartsWith(part.name, "expires_after")
                                     ? "files do not expire here"
                                     : "is not a field of an uploaded file");
  }
  CARAVAN_ASSIGN_OR_RETURN(const FormPart* const purpose, FindField(form, "purpose"));
  if (purpose->content != kPurpose) return ParamError("purpose", "must be \"batch\"");
  CARAVAN_ASSIGN_OR_RETURN(const FormPart* const file, FindField(form, "file"));
  if (!file->filename.has_value() || file->filename->empty()) {
    return ParamError("file", "must come with a filename");
  }
  if (file->content.empty()) return ParamError("file", "is empty");
  return FileUpload{{*file->filename, kPurpose}, file->content};
}

}  // namespace caravan
