#ifndef CARAVAN_MODEL_TEXT_FILES_H_
#define CARAVAN_MODEL_TEXT_FILES_H_

// The files that say how a model's tokens are text, whatever form the model lies in.

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// What a packed model takes over from its source.
inline constexpr const char* kTextFileNames[] = {"tokenizer.json", "tokenizer_config.json",
                                                 "generation_config.json"};

struct TextFile {
  std::string text;
  std::string origin;  // names it in errors
};

/// The file `name` (one of kTextFileNames) of the model at `model_path`, which is as
/// OpenStoredModel's. A GGUF file's are made of its metadata; it has no generation_config.json.
/// Errors: NotFound - there is none; InvalidArgument - more than 256 MiB; as GgufSet::Open,
///         GgufTokenizerJson (Unimplemented too) and GgufTokenizerConfigJson. Each names the file.
absl::StatusOr<TextFile> ReadTextFile(const std::string& model_path, absl::string_view name);

}  // namespace caravan

#endif  // CARAVAN_MODEL_TEXT_FILES_H_
