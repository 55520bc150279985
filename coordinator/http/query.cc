#include "coordinator/http/query.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "coordinator/http/http_error.h"
#include "coordinator/http/router.h"

namespace caravan {
namespace {

absl::StatusOr<std::string> Decode(absl::string_view text) {
  return PercentDecode(absl::StrReplaceAll(text, {{"+", " "}}));
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseQuery(absl::string_view query) {
  std::map<std::string, std::string> fields;
  for (absl::string_view pair : absl::StrSplit(query, '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> halves =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    CARAVAN_ASSIGN_OR_RETURN(std::string name, Decode(halves.first));
    CARAVAN_ASSIGN_OR_RETURN(std::string value, Decode(halves.second));
    if (!fields.emplace(name, std::move(value)).second) {
      return WithParam(absl::InvalidArgumentError(absl::StrCat(name, ": is given twice")), name);
    }
  }
  return fields;
}

}  // namespace caravan
