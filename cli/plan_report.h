#ifndef CARAVAN_CLI_PLAN_REPORT_H_
#define CARAVAN_CLI_PLAN_REPORT_H_

// What `caravan plan` has found, and how it says so as text. As a page: cli/plan_page.h.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/box_json.h"
#include "cluster/forecast.h"
#include "cluster/purchases.h"
#include "model/layer_cost.h"
#include "model/model_config.h"

namespace caravan {

/// Boxes to plan for, as a row of a table.
struct PlannedBoxes {
  std::string label;  // "4", or the file's name
  std::vector<BoxCount> boxes;
};

/// Rows that belong together: one kind of box in several numbers, or what a file lists.
struct PlanGroup {
  std::string title;
  std::vector<std::string> lines;  // what the boxes are
  std::vector<PlannedBoxes> rows;
};

struct PlanQuestion {
  ModelConfig config;
  ModelCost cost;
  std::string model;  // for people
  std::vector<PlanGroup> groups;
  std::vector<int> jobs;
  ForecastLoad load;  // but for the number of jobs
  double target = 0;  // tokens/s that are marked
};

/// A row's answers, one for each number of jobs.
using PlanRow = std::vector<absl::StatusOr<Forecast>>;

struct PlanReport {
  PlanQuestion question;
  std::vector<std::vector<PlanRow>> rows;  // of each group
  // Where there is one row and one number of jobs: how the same boxes do with others, and what may
  // be bought.
  std::vector<int> sweep_jobs;
  PlanRow sweep;
  std::vector<PurchaseGain> purchases;

  bool is_of_one() const {
    return question.jobs.size() == 1 && rows.size() == 1 && rows.front().size() == 1;
  }
};

/// Errors: InvalidArgument - as PlanBoxes. That a model does not fit is an answer.
absl::StatusOr<PlanReport> MakePlanReport(PlanQuestion question);

/// Markdown.
std::string PlanText(const PlanReport& report);

/// Text that says what the figures are: predictions, of which model and load.
std::string PlanHead(const PlanReport& report);
/// "disk 3.4 GB/s, memory ...".
std::string DescribeBox(const Box& box);
/// Cells of the table of stages, in the order of StageColumns.
std::vector<std::string> StageColumns();
std::vector<std::string> StageCells(const Forecast& forecast, size_t stage);
/// The same of what may be bought.
std::vector<std::string> PurchaseColumns();
std::vector<std::string> PurchaseCells(const PurchaseGain& gain);
/// Tokens/s, the first token and the like of one forecast, a line each.
std::vector<std::string> DescribeForecast(const PlanQuestion& question, const Forecast& forecast);
/// Columns and cells of the table of boxes and jobs.
std::vector<std::string> RateColumns(const PlanQuestion& question);
std::vector<std::string> RateCells(const PlanQuestion& question, const std::string& label,
                                   const PlanRow& row);

}  // namespace caravan

#endif  // CARAVAN_CLI_PLAN_REPORT_H_
