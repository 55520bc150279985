#include "cli/xy_chart.h"

#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace caravan {

void PrintXyChart(const XyChart& chart) {
  std::printf("\n```mermaid\nxychart-beta\n  title \"%s\"\n", chart.title.c_str());
  std::printf("  x-axis \"%s\" [%s]\n", chart.x_name.c_str(), absl::StrJoin(chart.x, ", ").c_str());
  std::printf("  y-axis \"%s\"\n", chart.y_name.c_str());
  for (const std::vector<double>& line : chart.lines) {
    const auto add = [&](std::string* out, double y) {
      absl::StrAppendFormat(out, "%.*f", chart.decimals, y);
    };
    std::printf("  line [%s]\n", absl::StrJoin(line, ", ", add).c_str());
  }
  std::printf("```\n");
}

}  // namespace caravan
