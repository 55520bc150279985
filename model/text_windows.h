#ifndef CARAVAN_MODEL_TEXT_WINDOWS_H_
#define CARAVAN_MODEL_TEXT_WINDOWS_H_

// A long text, cut into windows that a model reads one by one.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/text_model.h"

namespace caravan {

/// Every window is a text of its own, with what begins one (TextModel::BeginText). Not thread-safe.
class TextWindows {
 public:
  /// `ids`: the text, without what begins one, or with it at its front. `window_tokens`: of all
  /// windows but the last, which may be shorter; what begins a text counts. Borrows `text`.
  /// REQUIRES: window_tokens >= 2.
  TextWindows(const TextModel& text, std::vector<int32_t> ids, int64_t window_tokens);

  /// The text's next tokens; empty at its end.
  std::vector<int32_t> Next();

 private:
  const TextModel* text_;
  std::vector<int32_t> ids_;
  size_t window_tokens_;
  size_t begin_ = 0;  // of the next window, in ids_
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_TEXT_WINDOWS_H_
