#include "worker/experts/expert_cost_file.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "model/fingerprint.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "caravan expert costs";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxBytes = int64_t{1} << 20;
// Of an expert, a copy or a visit: what takes longer was not measured.
constexpr double kMaxSeconds = 1e6;
constexpr int64_t kMaxRows = int64_t{1} << 32;

absl::StatusOr<ExpertCosts::Point> PointOf(const json& entry, absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(entry, origin));
  ExpertCosts::Point point;
  CARAVAN_ASSIGN_OR_RETURN(point.rows, fields.Int("rows", 1, kMaxRows));
  for (const auto& [name, cost] : {std::pair{"cpu_s", &point.cpu_seconds},
                                   std::pair{"cpu_beside_s", &point.cpu_beside_seconds},
                                   std::pair{"copy_beside_s", &point.copy_beside_seconds},
                                   std::pair{"card_s", &point.card_seconds}}) {
    CARAVAN_ASSIGN_OR_RETURN(*cost, fields.Number(name, 0, kMaxSeconds));
  }
  return point;
}

}  // namespace

std::string ExpertCostPath(absl::string_view directory, absl::string_view measured_for) {
  Fingerprint name;
  name.AddText(measured_for);
  return JoinPath(
      directory, absl::StrCat("expert-costs-", absl::Hex(name.value(), absl::kZeroPad16), ".json"));
}

json ExpertCostsJson(const ExpertCosts& costs) {
  json points = json::array();
  for (const ExpertCosts::Point& point : costs.points) {
    points.push_back({{"rows", point.rows},
                      {"cpu_s", point.cpu_seconds},
                      {"cpu_beside_s", point.cpu_beside_seconds},
                      {"copy_beside_s", point.copy_beside_seconds},
                      {"card_s", point.card_seconds}});
  }
  return {{"copy_s", costs.copy_seconds},
          {"visit_s", costs.visit_seconds},
          {"visit_row_s", costs.visit_row_seconds},
          {"points", std::move(points)}};
}

absl::Status WriteExpertCosts(const std::string& path, absl::string_view measured_for,
                              const ExpertCosts& costs) {
  json text = ExpertCostsJson(costs);
  text["format"] = kFormat;
  text["version"] = kVersion;
  text["measured_for"] = std::string(measured_for);
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(absl::StrCat(text.dump(), "\n")));
  return file->Commit();
}

absl::StatusOr<ExpertCosts> LoadExpertCosts(const std::string& path,
                                            absl::string_view measured_for) {
  CARAVAN_ASSIGN_OR_RETURN(const json text, ReadJsonFile(path, kMaxBytes));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(text, path));
  CARAVAN_ASSIGN_OR_RETURN(const std::string format, fields.String("format"));
  if (format != kFormat) return fields.Error("format", absl::StrCat("is not \"", kFormat, "\""));
  CARAVAN_RETURN_IF_ERROR(fields.Int("version", kVersion, kVersion).status());
  CARAVAN_ASSIGN_OR_RETURN(const std::string of, fields.String("measured_for"));
  if (of != measured_for) {
    return fields.Error("measured_for",
                        absl::StrCat("is \"", of, "\", not \"", measured_for, "\""));
  }
  ExpertCosts costs;
  for (const auto& [name, cost] :
       {std::pair{"copy_s", &costs.copy_seconds}, std::pair{"visit_s", &costs.visit_seconds},
        std::pair{"visit_row_s", &costs.visit_row_seconds}}) {
    CARAVAN_ASSIGN_OR_RETURN(*cost, fields.Number(name, 0, kMaxSeconds));
  }
  CARAVAN_ASSIGN_OR_RETURN(const json* const points, fields.Array("points"));
  int64_t rows = 0;
  for (const json& entry : *points) {
    CARAVAN_ASSIGN_OR_RETURN(const ExpertCosts::Point point, PointOf(entry, path));
    if (point.rows <= rows) return fields.Error("points", "rows do not ascend");
    rows = point.rows;
    costs.points.push_back(point);
  }
  if (costs.points.empty()) return fields.Error("points", "has none");
  return costs;
}

absl::StatusOr<ExpertCosts> KeptExpertCosts(
    const std::string& path, absl::string_view measured_for,
    absl::FunctionRef<absl::StatusOr<ExpertCosts>()> measure) {
  if (path.empty()) return measure();
  absl::StatusOr<ExpertCosts> kept = LoadExpertCosts(path, measured_for);
  if (kept.ok()) {
    LogInfo("expert_costs_loaded", {{"path", path}});
    return kept;
  }
  if (!absl::IsNotFound(kept.status())) {
    LogWarning("expert_costs_skipped", {{"why", kept.status().message()}});
  }
  CARAVAN_ASSIGN_OR_RETURN(ExpertCosts costs, measure());
  const absl::Status written = WriteExpertCosts(path, measured_for, costs);
  if (!written.ok()) LogWarning("expert_costs_not_kept", {{"why", written.message()}});
  return costs;
}

}  // namespace caravan
