#include "model/text_windows.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace caravan {

TextWindows::TextWindows(const TextModel& text, std::vector<int32_t> ids, int64_t window_tokens)
    : text_(&text), ids_(std::move(ids)), window_tokens_(static_cast<size_t>(window_tokens)) {
  CARAVAN_CHECK(window_tokens >= 2);
}

std::vector<int32_t> TextWindows::Next() {
  const size_t end = std::min(ids_.size(), begin_ + window_tokens_);
  std::vector<int32_t> window(ids_.begin() + static_cast<ptrdiff_t>(begin_),
                              ids_.begin() + static_cast<ptrdiff_t>(end));
  begin_ = end;
  if (window.empty()) return window;
  if (text_->BeginText(window) && window.size() > window_tokens_) {
    window.pop_back();  // to be the next window's first
    --begin_;
  }
  return window;
}

}  // namespace caravan
