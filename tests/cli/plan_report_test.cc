// What `caravan plan` says, as text and as a page.

#include "cli/plan_report.h"

#include <cmath>
#include <string>
#include <vector>

#include "cli/plan_page.h"
#include "cli/svg_plot.h"
#include "cluster/known_boxes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

/// R1 at 4.5 bits on `boxes`.
PlanQuestion Question(std::vector<BoxCount> boxes, std::vector<int> jobs) {
  SyntheticModel::Options shape;
  shape.config_path = CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json";
  shape.types = {DType::kQ4_K, DType::kQ4_K};
  const auto model = SyntheticModel::Create(shape).value();
  PlanQuestion question;
  question.config = model->config();
  question.cost = CostOfStoredModel(*model).value();
  question.model = "r1<&>";
  question.groups = {{"some boxes", {"a line on them"}, {{"2", std::move(boxes)}}}};
  question.jobs = std::move(jobs);
  question.load.decode = {.jobs = 1, .context_tokens = 2048};
  question.load.prompt_tokens = 1024;
  question.target = 0.5;
  return question;
}

std::vector<BoxCount> TwoBoxes() { return {{*FindBox("3060"), 1}, {*FindBox("cpu"), 1}}; }

TEST(PlanReport, OneSetOfBoxesAndJobsIsShownWhole) {
  const auto report = MakePlanReport(Question(TwoBoxes(), {8}));
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string text = PlanText(*report);
  EXPECT_THAT(text, HasSubstr("\nsome boxes\n- a line on them\n\n8 jobs: "));
  EXPECT_THAT(text, ContainsRegex("first token of a prompt of 1024 tokens, alone: [0-9.]+ s"));
  EXPECT_THAT(text, ContainsRegex("\\| 1 \\| (3060|cpu) \\| 0\\.\\.[0-9]+ \\|"));
  EXPECT_THAT(text, ContainsRegex("\\| 2 \\| (3060|cpu) \\| [0-9]+\\.\\.60 \\|"));
  EXPECT_THAT(text, ContainsRegex("\\| another box 3060 \\| 4650 \\| [0-9.]+ \\| \\+[0-9.]+ \\|"));
  EXPECT_THAT(text, HasSubstr("| 23 an hour | "));
}

TEST(PlanReport, SeveralNumbersOfJobsAreATable) {
  const auto report = MakePlanReport(Question(TwoBoxes(), {1, 8, 4096}));
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string text = PlanText(*report);
  EXPECT_THAT(text, HasSubstr("| boxes | experts in memory | 1 job | 8 jobs | 4096 jobs | "));
  EXPECT_THAT(text,
              ContainsRegex("\\| 2 \\| [0-9]+% to [0-9]+% \\| .* disk \\| \\*\\*[0-9.]+\\*\\* "
                            "disk \\| - \\|"));
  EXPECT_THAT(text, ContainsRegex("\n-: the first of them: the model does not fit; .* lacks"));
  EXPECT_THAT(text, Not(HasSubstr("what to buy next")));
}

TEST(PlanReport, AModelThatDoesNotFitIsAnAnswer) {
  Box box = *FindBox("3060");
  box.disk.bytes = int64_t{250} << 30;
  const auto report = MakePlanReport(Question({{box, 1}}, {1}));
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string text = PlanText(*report);
  EXPECT_THAT(text,
              ContainsRegex("does not fit; .* stage 1 \\(layers 0..60, box 3060\\) lacks 10[0-9] "
                            "GiB of disk"));
  EXPECT_THAT(text, HasSubstr("| another box 3060 | "));
  EXPECT_THAT(PlanPage(*report), HasSubstr("GiB of disk</p>"));
}

TEST(PlanReport, ABoxThatIsLeftOutIsNamed) {
  Box slow = *FindBox("cpu");
  slow.name = "slow";
  slow.cpu.multiply_adds = 1e6;
  const auto report = MakePlanReport(Question({{*FindBox("h200"), 1}, {slow, 2}}, {8}));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(PlanText(*report), HasSubstr("left out, as they would not help: 2 of 2 boxes slow"));
}

TEST(PlanReport, ThePageHasAllOfItAndAsksNoNetwork) {
  const auto report = MakePlanReport(Question(TwoBoxes(), {8}));
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string page = PlanPage(*report);
  EXPECT_THAT(page, AllOf(HasSubstr("<!doctype html>"), HasSubstr("prefers-color-scheme: dark"),
                          HasSubstr("r1&lt;&amp;&gt;"), HasSubstr("<h2>What to buy next</h2>"),
                          HasSubstr("<h2>Where the figures come from</h2>"),
                          HasSubstr("Intel ARK, Xeon E3-1240 v5: 4 cores"), HasSubstr("<svg ")));
  for (const char* const outside : {"http:", "https:", "src=", "href=", "@import", "url(", "r1<"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  const auto table = MakePlanReport(Question(TwoBoxes(), {1, 8}));
  ASSERT_TRUE(table.ok());
  EXPECT_THAT(PlanPage(*table), AllOf(HasSubstr("<td class=\"reached\">"), Not(HasSubstr("**"))));
}

TEST(SvgPlot, LinesLieWhereTheirValuesAre) {
  const std::string svg = LinePlot({.label = "a \"label\"",
                                    .x = {1, 4, 16},
                                    .x_name = "jobs",
                                    .lines = {{"a", {0, 10, 20}}, {"b", {5, std::nan(""), 5}}}});
  EXPECT_THAT(svg, HasSubstr("aria-label=\"a &quot;label&quot;\""));
  // From the left edge to the right, from the axis to the top; 4 is half way from 1 to 16.
  EXPECT_THAT(svg, HasSubstr("d=\"M52.0 182.0L378.0 96.0L704.0 10.0\""));
  // Nothing is drawn across what is not there.
  EXPECT_THAT(svg, HasSubstr("d=\"M52.0 139.0M704.0 139.0\""));
  EXPECT_THAT(svg, HasSubstr("<title>a: 4 jobs, 10.00</title>"));
  EXPECT_THAT(svg, HasSubstr("<li class=\"swatch series-1\">b</li>"));
}

TEST(SvgPlot, BarsAreAsLongAsTheirParts) {
  const std::string svg = BarPlot({.label = "bars",
                                   .parts = {"p", "q"},
                                   .bars = {{"long", {1, 3}, "4"}, {"none", {0, 0}, "0"}},
                                   .name_width = 200});
  EXPECT_THAT(svg, HasSubstr("x=\"200.0\" y=\"5\" width=\"100.0\""));
  EXPECT_THAT(svg, HasSubstr("x=\"300.0\" y=\"5\" width=\"300.0\""));
  EXPECT_THAT(svg, Not(HasSubstr("y=\"29\" width")));
}

}  // namespace
}  // namespace caravan
