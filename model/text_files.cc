#include "model/text_files.h"

#include <cstdint>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "model/gguf/gguf_set.h"
#include "model/gguf/gguf_tokenizer.h"

namespace caravan {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

}  // namespace

absl::StatusOr<TextFile> ReadTextFile(const std::string& model_path, absl::string_view name) {
  TextFile file;
  if (!IsGgufPath(model_path)) {
    file.origin = JoinPath(model_path, name);
    CARAVAN_ASSIGN_OR_RETURN(file.text, ReadFile(file.origin, kMaxFileBytes));
    return file;
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<GgufSet> gguf, GgufSet::Open(model_path));
  file.origin = absl::StrCat(gguf->path(), ": metadata as ", name);
  if (name == "tokenizer.json") {
    CARAVAN_ASSIGN_OR_RETURN(file.text, GgufTokenizerJson(gguf->metadata()));
  } else if (name == "tokenizer_config.json") {
    CARAVAN_ASSIGN_OR_RETURN(file.text, GgufTokenizerConfigJson(gguf->metadata()));
  } else {
    return absl::NotFoundError(absl::StrCat(gguf->path(), ": has no ", name));
  }
  return file;
}

}  // namespace caravan
