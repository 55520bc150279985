#include "cli/plan_page.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/byte_size.h"
#include "cli/svg_plot.h"
#include "coordinator/dashboard_files.h"

namespace caravan {
namespace {

constexpr char kStyle[] = R"(
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: var(--radius);
  background: var(--surface); }
.scroll th:nth-child(3), .scroll td:nth-child(3) { display: table-cell; }
.scroll td.reached { font-weight: 650; color: var(--good); }
.scroll td:first-child { text-align: left; }
.purchases td:nth-child(2), .purchases th:nth-child(2) { text-align: right; }
.sources td, .sources th { text-align: left; white-space: normal; }
.sources td:last-child { min-width: 320px; }
.plot { min-height: 0; margin-top: 12px; padding-bottom: 10px; }
.plot .legend { padding-bottom: 4px; }
.plot svg { max-width: 900px; height: auto; }
.facts li { margin-top: 4px; }
.lacks { color: var(--bad); }
.series-0 { --series: var(--first); }
.series-1 { --series: var(--experts); }
.series-2 { --series: var(--kv-used); }
.series-3 { --series: var(--kv-cached); }
.series-4 { --series: var(--muted); }
.series-5 { --series: var(--good); }
.swatch::before { background: var(--series); }
.plot path.line { stroke: var(--series); }
.plot circle, .plot rect { fill: var(--series); }
)";

std::string Tag(absl::string_view tag, absl::string_view html) {
  return absl::StrCat("<", tag, ">", html, "</", tag.substr(0, tag.find(' ')), ">");
}

std::string Section(absl::string_view title, absl::string_view html) {
  return absl::StrCat("<section>\n<div class=\"bar\">", Tag("h2", EscapeHtml(title)), "</div>\n",
                      html, "</section>\n");
}

std::string List(const std::vector<std::string>& lines) {
  std::string items;
  for (const std::string& line : lines) absl::StrAppend(&items, Tag("li", EscapeHtml(line)), "\n");
  return lines.empty() ? "" : Tag("ul class=\"facts\"", items);
}

std::string Plot(absl::string_view caption, absl::string_view svg) {
  return absl::StrCat("<figure class=\"plot\"><p class=\"name\">", EscapeHtml(caption), "</p>", svg,
                      "</figure>\n");
}

/// A cell that text marks with ** has a class here.
std::string Cell(absl::string_view text) {
  if (!absl::ConsumePrefix(&text, "**")) return Tag("td", EscapeHtml(text));
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits("**", 1));
  return absl::StrCat("<td class=\"reached\">", EscapeHtml(parts.first), EscapeHtml(parts.second),
                      "</td>");
}

std::string Table(const std::vector<std::string>& columns,
                  const std::vector<std::vector<std::string>>& rows, absl::string_view classes) {
  std::string html = absl::StrCat("<div class=\"", classes, "\" tabindex=\"0\"><table><thead><tr>");
  for (const std::string& column : columns) {
    absl::StrAppend(&html, Tag("th scope=\"col\"", EscapeHtml(column)));
  }
  absl::StrAppend(&html, "</tr></thead><tbody>\n");
  for (const std::vector<std::string>& row : rows) {
    std::string cells;
    for (const std::string& cell : row) absl::StrAppend(&cells, Cell(cell));
    absl::StrAppend(&html, Tag("tr", cells), "\n");
  }
  return absl::StrCat(html, "</tbody></table></div>\n");
}

double RateOf(const PlanQuestion& question, const absl::StatusOr<Forecast>& forecast) {
  return forecast.ok() ? forecast->TokensPerSecond(question.load.aim)
                       : std::numeric_limits<double>::quiet_NaN();
}

SvgLine LineOf(const PlanQuestion& question, std::string name, const PlanRow& row) {
  SvgLine line = {.name = std::move(name), .y = {}};
  for (const absl::StatusOr<Forecast>& forecast : row) {
    line.y.push_back(RateOf(question, forecast));
  }
  return line;
}

std::string Rates(const PlanReport& report) {
  const PlanQuestion& question = report.question;
  std::string html;
  for (size_t i = 0; i < question.groups.size(); ++i) {
    const PlanGroup& group = question.groups[i];
    std::vector<std::vector<std::string>> cells;
    SvgLinePlot plot = {.label = absl::StrCat("tokens/s by jobs, ", group.title),
                        .x = question.jobs,
                        .x_name = "jobs",
                        .lines = {}};
    for (size_t j = 0; j < group.rows.size(); ++j) {
      const std::string& label = group.rows[j].label;
      cells.push_back(RateCells(question, label, report.rows[i][j]));
      plot.lines.push_back(LineOf(question, absl::StrCat("boxes: ", label), report.rows[i][j]));
    }
    std::string plots;
    // One number of jobs is no line.
    if (question.jobs.size() > 1 && std::is_sorted(plot.x.begin(), plot.x.end())) {
      plots = Plot("Tokens/s by jobs at once", LinePlot(plot));
    }
    absl::StrAppend(
        &html,
        Section(group.title, absl::StrCat(Table(RateColumns(question), cells, "scroll"), plots)));
  }
  return html;
}

/// Where the bytes of each stage lie, and how long it takes.
std::string StagePlots(const Forecast& forecast) {
  SvgBarPlot tiers = {.label = "where each stage's bytes lie",
                      .parts = {"VRAM: weights and KV", "VRAM: experts", "RAM: weights and KV",
                                "RAM: experts", "disk: the other experts"},
                      .bars = {}};
  SvgBarPlot busy = {
      .label = "what each stage takes for a micro-batch", .parts = {"seconds"}, .bars = {}};
  for (size_t i = 0; i < forecast.stages.size(); ++i) {
    const StageTime& time = forecast.together.stages[i];
    const StageTiers& lie = time.tiers;
    const std::string name = absl::StrCat(i + 1, " ", forecast.stages[i].box->name, ", layers ",
                                          forecast.stages[i].stage.first_layer, "..",
                                          forecast.stages[i].stage.end_layer - 1);
    const double experts =
        time.expert_share > 0
            ? static_cast<double>(lie.card_expert_bytes + lie.memory_expert_bytes) /
                  time.expert_share
            : 0;
    const double others = std::max(
        0.0, experts - static_cast<double>(lie.card_expert_bytes + lie.memory_expert_bytes));
    tiers.bars.push_back(
        {name,
         {static_cast<double>(lie.card_fixed_bytes), static_cast<double>(lie.card_expert_bytes),
          static_cast<double>(lie.memory_fixed_bytes), static_cast<double>(lie.memory_expert_bytes),
          others},
         FormatByteSize(lie.disk_bytes)});
    busy.bars.push_back(
        {name,
         {time.busy_seconds()},
         absl::StrFormat("%.3g s, %s", time.busy_seconds(), BottleneckName(time.bottleneck))});
  }
  return absl::StrCat(
      Plot("Where each stage's bytes lie; behind it, what its disk holds", BarPlot(tiers)),
      Plot("What a micro-batch takes of each stage, and what bounds it", BarPlot(busy)));
}

std::string Purchases(const PlanReport& report) {
  if (report.purchases.empty()) {
    return "<p>Nothing that could be bought for these boxes makes the model fit.</p>";
  }
  std::vector<std::vector<std::string>> cells;
  SvgBarPlot plot = {
      .label = "tokens/s more for 1000 yuan", .parts = {"gain"}, .bars = {}, .name_width = 420};
  for (const PurchaseGain& gain : report.purchases) {
    cells.push_back(PurchaseCells(gain));
    if (gain.purchase.by_the_hour || gain.purchase.price_yuan == 0) continue;
    plot.bars.push_back({gain.purchase.what,
                         {std::max(0.0, gain.gain_per_1000_yuan())},
                         absl::StrFormat("%+.2f", gain.gain_per_1000_yuan())});
  }
  return absl::StrCat(Table(PurchaseColumns(), cells, "scroll purchases"),
                      Plot("Tokens/s more for 1000 yuan", BarPlot(plot)));
}

std::string One(const PlanReport& report) {
  const PlanQuestion& question = report.question;
  const absl::StatusOr<Forecast>& forecast = report.rows.front().front().front();
  const PlanGroup& group = question.groups.front();
  std::string html;
  if (forecast.ok()) {
    std::vector<std::vector<std::string>> cells;
    for (size_t i = 0; i < forecast->stages.size(); ++i) cells.push_back(StageCells(*forecast, i));
    absl::StrAppend(&html,
                    Section(group.title, absl::StrCat(List(group.lines),
                                                      List(DescribeForecast(question, *forecast)))),
                    Section("Stages", absl::StrCat(Table(StageColumns(), cells, "scroll"),
                                                   StagePlots(*forecast))));
  } else {
    absl::StrAppend(&html, Section(group.title, Tag("p class=\"lacks\"",
                                                    EscapeHtml(forecast.status().message()))));
  }
  const SvgLinePlot sweep = {.label = "tokens/s by jobs",
                             .x = report.sweep_jobs,
                             .x_name = "jobs",
                             .lines = {LineOf(question, "these boxes", report.sweep)}};
  absl::StrAppend(
      &html,
      Section("The same boxes with other numbers of jobs",
              Plot("Tokens/s by jobs at once; where the line ends, memory does", LinePlot(sweep))),
      Section("What to buy next", Purchases(report)));
  return html;
}

/// Every figure of the boxes that are planned for, with its source.
std::string Sources(const PlanQuestion& question) {
  std::vector<std::vector<std::string>> cells;
  for (const PlanGroup& group : question.groups) {
    for (const BoxCount& kind : group.rows.front().boxes) {
      const nlohmann::json box = BoxToJson(kind.box);
      for (const auto& part : box.items()) {
        if (!part.value().is_object()) continue;
        const nlohmann::json sources = part.value().value("sources", nlohmann::json::object());
        for (const auto& figure : part.value().items()) {
          if (!figure.value().is_number()) continue;
          const auto source = sources.find(figure.key());
          cells.push_back({kind.box.name, part.value().value("name", part.key()),
                           absl::StrCat(part.key(), ".", figure.key()),
                           absl::StrFormat("%.12g", figure.value().get<double>()),
                           source == sources.end() ? "" : source->get<std::string>()});
        }
      }
    }
  }
  return Section("Where the figures come from",
                 Table({"box", "part", "figure", "value", "source"}, cells, "scroll sources"));
}

std::string DashboardStyle() {
  for (const DashboardFile& file : DashboardFiles()) {
    if (file.name == "dashboard.css") return std::string(file.contents);
  }
  return "";
}

}  // namespace

std::string PlanPage(const PlanReport& report) {
  const PlanQuestion& question = report.question;
  std::vector<std::string> head = absl::StrSplit(PlanHead(report), '\n', absl::SkipEmpty());
  std::string notes;
  for (const std::string& line : head) {
    if (absl::StartsWith(line, "**")) continue;  // a word on text's marks
    absl::StrAppend(&notes, Tag("p class=\"note\"", EscapeHtml(line)), "\n");
  }
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Caravan: a plan for ",
      EscapeHtml(question.model), "</title>\n<style>\n", DashboardStyle(), kStyle,
      "</style>\n</head>\n<body>\n<header class=\"top\"><h1>Caravan plan</h1><span "
      "class=\"model\">",
      EscapeHtml(question.model), "</span></header>\n<main>\n<section>", notes, "</section>\n",
      report.is_of_one() ? One(report) : Rates(report), Sources(question),
      "</main>\n</body>\n</html>\n");
}

}  // namespace caravan
