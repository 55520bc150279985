#include "cli/plan_report.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/xy_chart.h"
#include "model/stage_spec.h"

namespace caravan {
namespace {

constexpr int kSweptJobs[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};

/// "0.42 disk", or "-" where the boxes have not the memory.
std::string RateCell(const PlanQuestion& question, const absl::StatusOr<Forecast>& forecast) {
  if (!forecast.ok()) return "-";
  const double rate_of_all = forecast->TokensPerSecond(question.load.aim);
  const PipelineTime& time =
      question.load.aim == PlanAim::kBulk ? forecast->together : forecast->alone;
  const std::string rate = absl::StrFormat("%.2f", rate_of_all);
  const bool reached = question.target > 0 && rate_of_all >= question.target;
  return absl::StrCat(reached ? absl::StrCat("**", rate, "**") : rate, " ",
                      BottleneckName(time.slowest.bottleneck));
}

/// "95% to 74%", of the first to the last; "95%" where they are one; "-" where there are none.
std::string ShareCell(const PlanRow& row) {
  std::vector<double> shares;
  for (const absl::StatusOr<Forecast>& forecast : row) {
    if (forecast.ok()) shares.push_back(forecast->together.slowest.expert_share);
  }
  if (shares.empty()) return "-";
  const std::string first = absl::StrFormat("%.0f%%", 100 * shares.front());
  const std::string last = absl::StrFormat("%.0f%%", 100 * shares.back());
  return first == last ? first : absl::StrCat(first, " to ", last);
}

std::string TableLine(const std::vector<std::string>& cells) {
  return absl::StrCat("| ", absl::StrJoin(cells, " | "), " |\n");
}

std::string TableHead(const std::vector<std::string>& columns) {
  std::string text = TableLine(columns);
  absl::StrAppend(&text, "|");
  for (size_t i = 0; i < columns.size(); ++i) absl::StrAppend(&text, "---|");
  return absl::StrCat(text, "\n");
}

std::string Seconds(double seconds) {
  if (seconds >= 100) return absl::StrFormat("%.0f s", seconds);
  if (seconds >= 1) return absl::StrFormat("%.1f s", seconds);
  return absl::StrFormat("%.1f ms", 1e3 * seconds);
}

std::string SizeOrNone(int64_t bytes) { return bytes == 0 ? "-" : FormatByteSize(bytes); }

std::string GroupHead(const PlanGroup& group) {
  std::string text = absl::StrCat(group.title, "\n");
  for (const std::string& line : group.lines) absl::StrAppend(&text, "- ", line, "\n");
  return text;
}

void AppendRates(const PlanReport& report, std::string& text) {
  const PlanQuestion& question = report.question;
  for (size_t i = 0; i < question.groups.size(); ++i) {
    const PlanGroup& group = question.groups[i];
    absl::StrAppend(&text, "\n", GroupHead(group), "\n", TableHead(RateColumns(question)));
    std::vector<std::vector<double>> lines;
    std::vector<std::string> labels;
    absl::Status lacking;
    for (size_t j = 0; j < group.rows.size(); ++j) {
      const PlanRow& row = report.rows[i][j];
      absl::StrAppend(&text, TableLine(RateCells(question, group.rows[j].label, row)));
      labels.push_back(group.rows[j].label);
      std::vector<double>& line = lines.emplace_back();
      for (const absl::StatusOr<Forecast>& forecast : row) {
        lacking.Update(forecast.status());
        line.push_back(forecast.ok() ? forecast->TokensPerSecond(question.load.aim) : 0);
      }
    }
    if (!lacking.ok()) {
      absl::StrAppend(&text, "\n-: the first of them: ", lacking.message(), "\n");
    }
    absl::StrAppend(
        &text, FormatXyChart({.title = absl::StrCat("predicted tokens/s by jobs at once; lines: ",
                                                    absl::StrJoin(labels, ", "), " boxes"),
                              .x_name = "jobs",
                              .x = question.jobs,
                              .y_name = "tokens/s",
                              .lines = std::move(lines),
                              .decimals = 2}));
  }
}

void AppendPurchases(const PlanReport& report, std::string& text) {
  if (report.purchases.empty()) {
    absl::StrAppend(&text, "\nnothing that could be bought for them makes the model fit\n");
    return;
  }
  absl::StrAppend(&text, "\nwhat to buy next, most for the money first:\n\n",
                  TableHead(PurchaseColumns()));
  for (const PurchaseGain& gain : report.purchases) {
    absl::StrAppend(&text, TableLine(PurchaseCells(gain)));
  }
}

void AppendOne(const PlanReport& report, std::string& text) {
  const absl::StatusOr<Forecast>& forecast = report.rows.front().front().front();
  absl::StrAppend(&text, "\n", GroupHead(report.question.groups.front()), "\n");
  if (!forecast.ok()) {
    absl::StrAppend(&text, forecast.status().message(), "\n");
  } else {
    for (const std::string& line : DescribeForecast(report.question, *forecast)) {
      absl::StrAppend(&text, line, "\n");
    }
    absl::StrAppend(&text, "\n", TableHead(StageColumns()));
    for (size_t i = 0; i < forecast->stages.size(); ++i) {
      absl::StrAppend(&text, TableLine(StageCells(*forecast, i)));
    }
  }
  AppendPurchases(report, text);
}

}  // namespace

absl::StatusOr<PlanReport> MakePlanReport(PlanQuestion question) {
  PlanReport report;
  report.question = std::move(question);
  const PlanQuestion& asked = report.question;
  const auto forecast_row = [&asked](const std::vector<BoxCount>& boxes,
                                     const std::vector<int>& jobs) -> absl::StatusOr<PlanRow> {
    PlanRow row;
    for (const int number : jobs) {
      ForecastLoad load = asked.load;
      load.decode.jobs = number;
      row.push_back(ForecastBoxes(asked.config, asked.cost, boxes, load));
      if (absl::IsInvalidArgument(row.back().status())) return row.back().status();
    }
    return row;
  };
  for (const PlanGroup& group : asked.groups) {
    std::vector<PlanRow>& rows = report.rows.emplace_back();
    for (const PlannedBoxes& planned : group.rows) {
      CARAVAN_ASSIGN_OR_RETURN(PlanRow row, forecast_row(planned.boxes, asked.jobs));
      rows.push_back(std::move(row));
    }
  }
  if (!report.is_of_one()) return report;
  const std::vector<BoxCount>& boxes = asked.groups.front().rows.front().boxes;
  report.sweep_jobs.assign(std::begin(kSweptJobs), std::end(kSweptJobs));
  CARAVAN_ASSIGN_OR_RETURN(report.sweep, forecast_row(boxes, report.sweep_jobs));
  ForecastLoad load = asked.load;
  load.decode.jobs = asked.jobs.front();
  const absl::StatusOr<Forecast>& now = report.rows.front().front().front();
  report.purchases = RankPurchases(asked.config, asked.cost, boxes, load,
                                   now.ok() ? now->TokensPerSecond(load.aim) : 0);
  return report;
}

std::string PlanHead(const PlanReport& report) {
  const PlanQuestion& question = report.question;
  StageSpec whole;
  whole.end_layer = static_cast<int>(question.cost.layers.size());
  whole.embeds = whole.has_head = true;
  const LayerCost sum = question.cost.Of(whole);
  const bool bulk = question.load.aim == PlanAim::kBulk;
  std::string text = absl::StrCat(
      "a prediction, not a measurement: tokens/s ",
      bulk ? "of all jobs together while they decode"
           : "of one job that decodes alone, while memory has room for all of them",
      report.is_of_one()
          ? ""
          : ", and what bounds the slowest stage; experts in memory: of that stage, from the first "
            "number of jobs to the last that fits; prompts: the smallest --prefill-chunk on which "
            "a larger one gains little, and tokens/s while every stage has one, for the first "
            "number of jobs",
      "\nmodel ", question.model, ": ", FormatByteSize(sum.weight_bytes), ", of which ",
      FormatByteSize(sum.always_active_bytes()), " are always active; contexts of ",
      question.load.decode.context_tokens, " tokens, KV in ",
      KvOptionName(question.load.decode.kv_dtype), "\n");
  if (question.target > 0 && !report.is_of_one()) {
    absl::StrAppendFormat(&text, "**bold**: at least %g tokens/s\n", question.target);
  }
  return text;
}

std::string DescribeBox(const Box& box) {
  std::string text = absl::StrFormat(
      "disk %.1f GB/s, memory %s at %.1f GB/s, %.0f G multiply-adds/s", box.disk.read_bytes / 1e9,
      FormatByteSize(box.memory.bytes), box.memory.read_bytes / 1e9, box.cpu.multiply_adds / 1e9);
  if (box.card.count > 0) {
    absl::StrAppendFormat(&text, "; %scard %s at %.0f GB/s, %.0f G, copies %.1f GB/s",
                          box.card.count > 1 ? absl::StrCat(box.card.count, " x ") : "",
                          FormatByteSize(box.card.bytes), box.card.read_bytes / 1e9,
                          box.card.multiply_adds / 1e9, box.card.pcie_bytes / 1e9);
  }
  return text;
}

std::vector<std::string> RateColumns(const PlanQuestion& question) {
  std::vector<std::string> columns = {"boxes", "experts in memory"};
  for (const int jobs : question.jobs) {
    columns.push_back(absl::StrCat(jobs, jobs == 1 ? " job" : " jobs"));
  }
  columns.insert(columns.end(), {"prompts: chunk", "tokens/s"});
  return columns;
}

std::vector<std::string> RateCells(const PlanQuestion& question, const std::string& label,
                                   const PlanRow& row) {
  std::vector<std::string> cells = {label, ShareCell(row)};
  for (const absl::StatusOr<Forecast>& forecast : row) {
    cells.push_back(RateCell(question, forecast));
  }
  const absl::StatusOr<Forecast>& first = row.front();
  if (first.ok() && first->prompts.has_value()) {
    cells.push_back(absl::StrCat(first->prompts->chunk_tokens));
    cells.push_back(absl::StrFormat("%.1f %s", first->prompts->tokens_per_second,
                                    BottleneckName(first->prompts->slowest.bottleneck)));
  } else {
    cells.insert(cells.end(), {"-", "-"});
  }
  return cells;
}

std::vector<std::string> DescribeForecast(const PlanQuestion& question, const Forecast& forecast) {
  std::vector<std::string> lines;
  const int jobs = question.jobs.front();
  const PipelineTime& together = forecast.together;
  lines.push_back(absl::StrFormat(
      "%d %s: %.2f tokens/s together, a token of each every %s; micro-batches of %.3g rows", jobs,
      jobs == 1 ? "job" : "jobs", together.tokens_per_second, Seconds(together.seconds_per_token),
      together.rows));
  lines.push_back(
      absl::StrFormat("one job alone: %.2f tokens/s", forecast.alone.tokens_per_second));
  if (forecast.prompts.has_value()) {
    lines.push_back(absl::StrFormat(
        "first token of a prompt of %d tokens, alone: %s (--prefill-chunk %d); prompts together: "
        "%.1f tokens/s, %s (--prefill-chunk %d)",
        question.load.prompt_tokens, Seconds(forecast.first_token->seconds),
        forecast.first_token->chunk_tokens, forecast.prompts->tokens_per_second,
        BottleneckName(forecast.prompts->slowest.bottleneck), forecast.prompts->chunk_tokens));
  } else {
    lines.push_back("prompts: no memory for the steps of even the smallest chunk");
  }
  for (const BoxCount& kind : question.groups.front().rows.front().boxes) {
    const auto used = std::count_if(forecast.stages.begin(), forecast.stages.end(),
                                    [&](const BoxStage& stage) { return stage.box == &kind.box; });
    if (used < kind.count) {
      lines.push_back(absl::StrCat("left out, as they would not help: ", kind.count - used, " of ",
                                   kind.count, " boxes ", kind.box.name));
    }
  }
  return lines;
}

std::vector<std::string> StageColumns() {
  return {"stage",      "box",          "layers", "VRAM: fixed",       "VRAM: experts",
          "RAM: fixed", "RAM: experts", "disk",   "experts in memory", "a micro-batch reads",
          "takes",      "bottleneck"};
}

std::vector<std::string> StageCells(const Forecast& forecast, size_t stage) {
  const StageSpec& spec = forecast.stages[stage].stage;
  const StageTime& time = forecast.together.stages[stage];
  return {absl::StrCat(stage + 1),
          forecast.stages[stage].box->name,
          absl::StrCat(spec.first_layer, "..", spec.end_layer - 1),
          SizeOrNone(time.tiers.card_fixed_bytes),
          SizeOrNone(time.tiers.card_expert_bytes),
          SizeOrNone(time.tiers.memory_fixed_bytes),
          SizeOrNone(time.tiers.memory_expert_bytes),
          FormatByteSize(time.tiers.disk_bytes),
          absl::StrFormat("%.1f%%", 100 * time.expert_share),
          SizeOrNone(static_cast<int64_t>(time.bytes_read)),
          Seconds(time.busy_seconds()),
          BottleneckName(time.bottleneck)};
}

std::vector<std::string> PurchaseColumns() {
  return {"what", "yuan", "tokens/s", "gain", "gain for 1000 yuan"};
}

std::vector<std::string> PurchaseCells(const PurchaseGain& gain) {
  const Purchase& purchase = gain.purchase;
  std::string price = purchase.price_yuan == 0 ? "?" : absl::StrFormat("%.0f", purchase.price_yuan);
  std::string for_money = "?";
  if (purchase.by_the_hour) {
    absl::StrAppend(&price, " an hour");
    for_money = absl::StrFormat("%+.2f for %.0f hours", gain.gain, 1000 / purchase.price_yuan);
  } else if (purchase.price_yuan > 0) {
    for_money = absl::StrFormat("%+.2f", gain.gain_per_1000_yuan());
  }
  return {purchase.what, price, absl::StrFormat("%.2f", gain.tokens_per_second),
          absl::StrFormat("%+.2f", gain.gain), for_money};
}

std::string PlanText(const PlanReport& report) {
  std::string text = PlanHead(report);
  if (report.is_of_one()) {
    AppendOne(report, text);
  } else {
    AppendRates(report, text);
  }
  return text;
}

}  // namespace caravan
