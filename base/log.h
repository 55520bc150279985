#ifndef CARAVAN_BASE_LOG_H_
#define CARAVAN_BASE_LOG_H_

// Log lines on standard error: time, level, event, then key=value. INFO is for changes of state.

#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace caravan {

struct LogField {
  LogField(absl::string_view key_in, const absl::AlphaNum& value_in)
      : key(key_in), value(value_in.Piece()) {}
  absl::string_view key;
  std::string value;
};

/// Thread-safe; a line is written whole. Values with spaces are quoted, control characters escaped.
void LogInfo(absl::string_view event, std::initializer_list<LogField> fields = {});
void LogWarning(absl::string_view event, std::initializer_list<LogField> fields = {});

/// Keeps INFO lines back; for commands whose standard error people read. Call before threads start.
void SilenceInfoLog();

}  // namespace caravan

#endif  // CARAVAN_BASE_LOG_H_
