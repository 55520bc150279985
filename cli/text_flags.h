#ifndef CARAVAN_CLI_TEXT_FLAGS_H_
#define CARAVAN_CLI_TEXT_FLAGS_H_

// What the commands that read a text in windows share: --text and --window.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace caravan {

inline constexpr int64_t kDefaultWindow = 512;  // tokens

/// Tokens of a window: `window`, what --window says, or by default kDefaultWindow or the whole
/// context, whichever is less. `whose` names the context in errors, such as "model's context".
/// Errors: InvalidArgument - the window is past the context; the context has no room for two
///         tokens. Names the flag or the context.
absl::StatusOr<int64_t> WindowTokens(std::optional<int64_t> window, int64_t context,
                                     absl::string_view whose);

/// The tokens of the file `path`, what --text says.
/// Errors: as ReadFile and Tokenizer::Encode; InvalidArgument - more than 1 GiB. Each names the
///         flag and the file.
absl::StatusOr<std::vector<int32_t>> ReadTextTokens(const std::string& path,
                                                    const Tokenizer& tokenizer);

}  // namespace caravan

#endif  // CARAVAN_CLI_TEXT_FLAGS_H_
