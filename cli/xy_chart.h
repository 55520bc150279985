#ifndef CARAVAN_CLI_XY_CHART_H_
#define CARAVAN_CLI_XY_CHART_H_

// A plot that Markdown's readers draw.

#include <string>
#include <vector>

namespace caravan {

struct XyChart {
  std::string title;
  std::string x_name;
  std::vector<int> x;
  std::string y_name;
  std::vector<std::vector<double>> lines;  // each as long as x
  int decimals = 0;                        // of y
};

/// In Mermaid, with an empty line before.
std::string FormatXyChart(const XyChart& chart);

}  // namespace caravan

#endif  // CARAVAN_CLI_XY_CHART_H_
