#ifndef CARAVAN_CLI_SVG_PLOT_H_
#define CARAVAN_CLI_SVG_PLOT_H_

// Plots for pages, as SVG. Colours are the page's, by class: series-0 to series-5, and those of the
// dashboard's plots (axis, grid).

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace caravan {

/// `text` for HTML and for attributes in it.
std::string EscapeHtml(absl::string_view text);

struct SvgLine {
  std::string name;
  std::vector<double> y;  // NaN: there is none
};

struct SvgLinePlot {
  std::string label;   // for those who do not see it
  std::vector<int> x;  // ascending, from 1 on; the axis has their logarithm
  std::string x_name;
  std::vector<SvgLine> lines;
};

/// Lines with a dot for each value, whose title tells it; with a legend where there are several.
std::string LinePlot(const SvgLinePlot& plot);

struct SvgBar {
  std::string name;
  std::vector<double> parts;  // one of each of the plot's, from left to right, none below 0
  std::string text;           // behind it
};

struct SvgBarPlot {
  std::string label;
  std::vector<std::string> parts;  // what they are; a legend where there are several
  std::vector<SvgBar> bars;
  double name_width = 210;  // of 720: for names, before the bars
};

/// A bar a line, the longest as wide as there is room for.
std::string BarPlot(const SvgBarPlot& plot);

}  // namespace caravan

#endif  // CARAVAN_CLI_SVG_PLOT_H_
