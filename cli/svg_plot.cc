#include "cli/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/check.h"

namespace caravan {
namespace {

constexpr double kWidth = 720;  // of a plot's own units; pages scale it
constexpr double kLeft = 52;
constexpr double kRight = 16;
constexpr double kTop = 10;
constexpr double kHeight = 220;  // of a line plot
constexpr double kBottom = 38;
constexpr double kTextWidth = 120;  // right of a bar
constexpr double kBarStep = 24;
constexpr int kColours = 6;

/// A step of 1, 2 or 5 times a power of ten that splits [0, most] into four at most.
double AxisStep(double most) {
  const double rough = std::max(most, 1e-9) / 4;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string Legend(const std::vector<std::string>& names) {
  if (names.size() < 2) return "";
  std::string html = "<ul class=\"legend\">";
  for (size_t i = 0; i < names.size(); ++i) {
    absl::StrAppendFormat(&html, "<li class=\"swatch series-%d\">%s</li>", i % kColours,
                          EscapeHtml(names[i]));
  }
  return absl::StrCat(html, "</ul>");
}

std::string Open(absl::string_view label, double height) {
  return absl::StrFormat(
      "<svg viewBox=\"0 0 %g %g\" width=\"100%%\" role=\"img\" aria-label=\"%s\">", kWidth, height,
      EscapeHtml(label));
}

/// Where values lie on a line plot.
class Axes {
 public:
  explicit Axes(const SvgLinePlot& plot) : plot_(plot) {
    double most = 0;
    for (const SvgLine& line : plot.lines) {
      for (const double y : line.y) most = std::isnan(y) ? most : std::max(most, y);
    }
    step_ = AxisStep(most);
    top_ = std::max(step_, step_ * std::ceil(most / step_ - 1e-9));
  }

  double X(int x) const {
    const double first = std::log2(plot_.x.front());
    const double range = std::max(1e-9, std::log2(plot_.x.back()) - first);
    return kLeft + (std::log2(x) - first) / range * (kWidth - kLeft - kRight);
  }
  double Y(double y) const { return kHeight - kBottom - y / top_ * (kHeight - kTop - kBottom); }

  std::string Draw() const {
    std::string svg;
    for (double y = 0; y <= top_ * (1 + 1e-9); y += step_) {
      absl::StrAppendFormat(&svg,
                            "<line class=\"%s\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>"
                            "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%g</text>",
                            y == 0 ? "axis" : "grid", kLeft, kWidth - kRight, Y(y), Y(y), kLeft - 6,
                            Y(y) + 4, y);
    }
    for (const int x : plot_.x) {
      absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%d</text>",
                            X(x), kHeight - kBottom + 15, x);
    }
    absl::StrAppendFormat(&svg, "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text>",
                          kWidth - kRight, kHeight - 6, EscapeHtml(plot_.x_name));
    return svg;
  }

 private:
  const SvgLinePlot& plot_;
  double step_ = 1;
  double top_ = 1;
};

std::string DrawLine(const SvgLinePlot& plot, const SvgLine& line, const Axes& axes,
                     size_t colour) {
  std::string path;
  std::string dots;
  bool is_down = false;  // the pen
  for (size_t i = 0; i < plot.x.size() && i < line.y.size(); ++i) {
    if (std::isnan(line.y[i])) {
      is_down = false;
      continue;
    }
    const double x = axes.X(plot.x[i]);
    const double y = axes.Y(line.y[i]);
    absl::StrAppendFormat(&path, "%s%.1f %.1f", is_down ? "L" : "M", x, y);
    is_down = true;
    absl::StrAppendFormat(
        &dots,
        "<circle class=\"series-%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>%s</title></circle>",
        colour, x, y,
        EscapeHtml(
            absl::StrFormat("%s: %d %s, %.2f", line.name, plot.x[i], plot.x_name, line.y[i])));
  }
  return absl::StrFormat("<path class=\"line series-%d\" d=\"%s\"/>%s", colour, path, dots);
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string LinePlot(const SvgLinePlot& plot) {
  const Axes axes(plot);
  std::string svg = absl::StrCat(Open(plot.label, kHeight), axes.Draw());
  std::vector<std::string> names;
  for (const SvgLine& line : plot.lines) {
    absl::StrAppend(&svg, DrawLine(plot, line, axes, names.size() % kColours));
    names.push_back(line.name);
  }
  return absl::StrCat(Legend(names), svg, "</svg>");
}

std::string BarPlot(const SvgBarPlot& plot) {
  double most = 0;
  for (const SvgBar& bar : plot.bars) {
    CARAVAN_CHECK(bar.parts.size() == plot.parts.size());
    double sum = 0;
    for (const double part : bar.parts) sum += part;
    most = std::max(most, sum);
  }
  const double scale = most == 0 ? 0 : (kWidth - plot.name_width - kTextWidth) / most;
  std::string svg = Open(plot.label, static_cast<double>(plot.bars.size()) * kBarStep + 4);
  double y = 2;
  for (const SvgBar& bar : plot.bars) {
    absl::StrAppendFormat(&svg, "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text>",
                          plot.name_width - 8, y + 14, EscapeHtml(bar.name));
    double x = plot.name_width;
    for (size_t i = 0; i < bar.parts.size(); ++i) {
      const double width = bar.parts[i] * scale;
      if (width == 0) continue;
      absl::StrAppendFormat(
          &svg, "<rect class=\"series-%d\" x=\"%.1f\" y=\"%g\" width=\"%.1f\" height=\"%g\"/>",
          i % kColours, x, y + 3, width, kBarStep - 8);
      x += width;
    }
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%g\">%s</text>", x + 6, y + 14,
                          EscapeHtml(bar.text));
    y += kBarStep;
  }
  return absl::StrCat(Legend(plot.parts), svg, "</svg>");
}

}  // namespace caravan
