#include "base/log.h"

#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace caravan {
namespace {

bool info_silenced = false;

void Write(absl::string_view level, absl::string_view event,
           std::initializer_list<LogField> fields) {
  std::string line =
      absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()), " ",
                   level, " ", event);
  for (const LogField& field : fields) {
    const bool plain = field.value.find_first_of(" \"\\\n\r\t") == std::string::npos;
    absl::StrAppend(&line, " ", field.key, "=");
    if (plain && !field.value.empty()) {
      absl::StrAppend(&line, field.value);
    } else {
      absl::StrAppend(&line, "\"", absl::Utf8SafeCEscape(field.value), "\"");
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
