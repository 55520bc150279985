#include "coordinator/openai/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace caravan {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    CARAVAN_CHECK(!stop.empty());
    std::vector<size_t> borders(stop.size(), 0);
    for (size_t i = 1, border = 0; i < stop.size(); ++i) {
      while (border > 0 && stop[i] != stop[border]) border = borders[border - 1];
      if (stop[i] == stop[border]) ++border;
      borders[i] = border;
    }
    patterns_.push_back({stop, std::move(borders), 0});
  }
}

std::string StopMatcher::Push(absl::string_view text) {
  if (stopped_) return "";
  for (const char c : text) {
    held_.push_back(c);
    size_t whole = 0;
    for (Pattern& pattern : patterns_) {
      size_t& matched = pattern.matched;
      while (matched > 0 && c != pattern.text[matched]) matched = pattern.borders[matched - 1];
      if (c == pattern.text[matched]) ++matched;
      if (matched == pattern.text.size()) whole = std::max(whole, matched);
    }
    if (whole > 0) {
      stopped_ = true;
      held_.resize(held_.size() - whole);
      return std::exchange(held_, "");
    }
  }
  size_t held = 0;
  for (const Pattern& pattern : patterns_) held = std::max(held, pattern.matched);
  std::string known = held_.substr(0, held_.size() - held);
  held_.erase(0, known.size());
  return known;
}

std::string StopMatcher::Flush() {
  for (Pattern& pattern : patterns_) pattern.matched = 0;
  return std::exchange(held_, "");
}

}  // namespace caravan
