#include "base/log.h"

#include <algorithm>
#include <cstdio>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace caravan {
namespace {

bool info_silenced = false;

/// In double quotes, with backslashes before quotes and for control characters.
std::string Quoted(absl::string_view value) {
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '\n') {
      quoted += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppend(&quoted, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      if (c == '"' || c == '\\') quoted.push_back('\\');
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

void Write(absl::string_view level, absl::string_view event,
           std::initializer_list<LogField> fields) {
  std::string line =
      absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ",
                   level, " ", event);
  for (const LogField& field : fields) {
    const bool plain = std::none_of(field.value.begin(), field.value.end(), [](char c) {
      return static_cast<unsigned char>(c) <= 0x20 || c == '"' || c == '\\';
    });
    absl::StrAppend(&line, " ", field.key, "=");
    if (plain && !field.value.empty()) {
      absl::StrAppend(&line, field.value);
    } else {
      line += Quoted(field.value);
    }
  }
  line.push_back('\n');
  // One call, so that lines of several threads do not mix.
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace

void LogInfo(absl::string_view event, std::initializer_list<LogField> fields) {
  if (!info_silenced) Write("INFO", event, fields);
}

void LogWarning(absl::string_view event, std::initializer_list<LogField> fields) {
  Write("WARNING", event, fields);
}

void SilenceInfoLog() { info_silenced = true; }

}  // namespace caravan
