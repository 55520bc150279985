#include "cli/xy_chart.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace caravan {

std::string FormatXyChart(const XyChart& chart) {
  std::string text = absl::StrFormat("\n```mermaid\nxychart-beta\n  title \"%s\"\n", chart.title);
  absl::StrAppendFormat(&text, "  x-axis \"%s\" [%s]\n", chart.x_name,
                        absl::StrJoin(chart.x, ", "));
  absl::StrAppendFormat(&text, "  y-axis \"%s\"\n", chart.y_name);
  for (const std::vector<double>& line : chart.lines) {
    const auto add = [&](std::string* out, double y) {
      absl::StrAppendFormat(out, "%.*f", chart.decimals, y);
    };
    absl::StrAppendFormat(&text, "  line [%s]\n", absl::StrJoin(line, ", ", add));
  }
  return absl::StrCat(text, "```\n");
}

}  // namespace caravan
