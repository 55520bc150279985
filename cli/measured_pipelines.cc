#include "cli/measured_pipelines.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "cluster/box_json.h"
#include "cluster/step_time.h"
#include "coordinator/box_simulation.h"

namespace caravan {
namespace {

using nlohmann::json;

constexpr char kFormat[] = "caravan-pipelines";
constexpr int kVersion = 1;

json FiguresToJson(const PipelineFigures& figures) {
  return {{"tokens_per_second", figures.tokens_per_second},
          {"first_token_seconds", figures.first_token_seconds},
          {"seconds_per_token", figures.seconds_per_token}};
}

PipelineFigures FiguresFromJson(const json& figures) {
  return {figures.at("tokens_per_second").get<double>(),
          figures.at("first_token_seconds").get<double>(),
          figures.at("seconds_per_token").get<double>()};
}

absl::StatusOr<PipelineRun> RunFromJson(const json& json, const std::map<std::string, Box>& boxes,
                                        int num_layers) {
  PipelineRun run;
  run.name = json.at("name").get<std::string>();
  for (const nlohmann::json& id : json.at("boxes")) {
    const auto box = boxes.find(id.get<std::string>());
    if (box == boxes.end()) {
      return absl::InvalidArgumentError(absl::StrCat("run \"", run.name, "\": no box ", id.dump()));
    }
    run.boxes.push_back(box->second);
  }
  for (const nlohmann::json& stage : json.at("stages")) {
    run.stages.push_back(StageOf(stage.at(0).get<int>(), stage.at(1).get<int>(), num_layers));
  }
  if (run.stages.empty() || run.stages.size() != run.boxes.size() || !run.stages.front().embeds ||
      !run.stages.back().has_head) {
    return absl::InvalidArgumentError(
        absl::StrCat("run \"", run.name, "\": its stages are no pipeline of its boxes"));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::optional<DType> kv,
                           ParsePackType(json.at("kv").get<std::string>()));
  run.kv_dtype = kv.value_or(DType::kF16);
  run.kv_jobs = json.at("kv_jobs").get<int64_t>();
  run.context_tokens = json.at("context_tokens").get<int64_t>();
  run.prefill_chunk = json.at("prefill_chunk").get<int64_t>();
  for (const nlohmann::json& job : json.at("jobs")) {
    run.jobs.push_back({.arrival_seconds = job.at(0).get<double>(),
                        .prompt_tokens = job.at(1).get<int64_t>(),
                        .reply_tokens = job.at(2).get<int64_t>()});
    if (run.jobs.back().prompt_tokens < 1 || run.jobs.back().reply_tokens < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("run \"", run.name, "\": a job is too short to be timed"));
    }
  }
  run.measured = FiguresFromJson(json.at("measured"));
  run.stage_busy_seconds = json.at("stage_busy_seconds").get<std::vector<double>>();
  run.stage_read_bytes = json.at("stage_read_bytes").get<std::vector<double>>();
  run.stage_expert_slots = json.at("stage_expert_slots").get<std::vector<int64_t>>();
  return run;
}

/// The jobs' first tokens and paces.
PipelineFigures FiguresOf(const std::vector<SimulatedJob>& jobs, const Simulation& result) {
  std::vector<double> first;
  std::vector<double> pace;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SimulatedOutcome& outcome = result.jobs[i];
    first.push_back(outcome.first_token_seconds - outcome.arrival_seconds);
    pace.push_back((outcome.end_seconds - outcome.first_token_seconds) /
                   static_cast<double>(jobs[i].reply_tokens - 1));
  }
  PipelineFigures figures;
  figures.tokens_per_second = static_cast<double>(result.generated_tokens) / result.seconds;
  figures.first_token_seconds = Median(std::move(first));
  figures.seconds_per_token = Median(std::move(pace));
  return figures;
}

}  // namespace

json PipelinesToJson(const MeasuredPipelines& measured) {
  std::map<std::string, Box> boxes;
  const auto id_of = [&boxes](const Box& box) {
    for (const auto& [id, known] : boxes) {
      if (known == box) return id;
    }
    std::string id = absl::StrFormat("%03d", boxes.size() + 1);
    boxes.emplace(id, box);
    return id;
  };
  json runs = json::array();
  for (const PipelineRun& run : measured.runs) {
    json ids = json::array();
    for (const Box& box : run.boxes) ids.push_back(id_of(box));
    json stages = json::array();
    for (const StageSpec& stage : run.stages) {
      stages.push_back({stage.first_layer, stage.end_layer});
    }
    json jobs = json::array();
    for (const SimulatedJob& job : run.jobs) {
      jobs.push_back({job.arrival_seconds, job.prompt_tokens, job.reply_tokens});
    }
    runs.push_back({{"name", run.name},
                    {"boxes", ids},
                    {"stages", stages},
                    {"kv", DTypeName(run.kv_dtype)},
                    {"kv_jobs", run.kv_jobs},
                    {"context_tokens", run.context_tokens},
                    {"prefill_chunk", run.prefill_chunk},
                    {"jobs", jobs},
                    {"measured", FiguresToJson(run.measured)},
                    {"stage_busy_seconds", run.stage_busy_seconds},
                    {"stage_read_bytes", run.stage_read_bytes},
                    {"stage_expert_slots", run.stage_expert_slots}});
  }
  json json_boxes = json::object();
  for (const auto& [id, box] : boxes) json_boxes[id] = BoxToJson(box);
  const auto type_name = [](const std::optional<DType>& type) {
    return type.has_value() ? std::string(DTypeName(*type)) : std::string("keep");
  };
  return {{"format", kFormat},
          {"version", kVersion},
          {"machine", measured.machine},
          {"model",
           {{"config", json::parse(measured.config_json)},
            {"experts", type_name(measured.types.experts)},
            {"dense", type_name(measured.types.dense)},
            {"weight_bytes", measured.weight_bytes}}},
          {"boxes", json_boxes},
          {"runs", runs}};
}

absl::StatusOr<MeasuredPipelines> PipelinesFromJson(const json& file, const std::string& origin) {
  try {
    if (file.at("format") != kFormat || file.at("version") != kVersion) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": is no \"", kFormat, "\" of version ", kVersion));
    }
    MeasuredPipelines measured;
    measured.machine = file.at("machine").get<std::string>();
    const json& model = file.at("model");
    measured.config_json = model.at("config").dump(2);
    CARAVAN_ASSIGN_OR_RETURN(measured.types.experts,
                             ParsePackType(model.at("experts").get<std::string>()));
    CARAVAN_ASSIGN_OR_RETURN(measured.types.dense,
                             ParsePackType(model.at("dense").get<std::string>()));
    measured.weight_bytes = model.at("weight_bytes").get<int64_t>();
    std::map<std::string, Box> boxes;
    for (const auto& [id, box] : file.at("boxes").items()) {
      CARAVAN_ASSIGN_OR_RETURN(boxes[id], BoxFromJson(box, absl::StrCat(origin, ", box ", id)));
    }
    const int num_layers = model.at("config").at("num_hidden_layers").get<int>();
    for (const json& run : file.at("runs")) {
      absl::StatusOr<PipelineRun> read = RunFromJson(run, boxes, num_layers);
      if (!read.ok()) return Annotate(read.status(), origin);
      measured.runs.push_back(*std::move(read));
    }
    return measured;
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", error.what()));
  }
}

MeasuredPipelines WithSteadyBoxes(MeasuredPipelines measured) {
  const auto steady = [&measured](auto rate_of) {
    std::vector<double> rates;
    for (PipelineRun& run : measured.runs) {
      for (Box& box : run.boxes) rates.push_back(rate_of(box));
    }
    if (rates.empty()) return;
    const double median = Median(std::move(rates));
    for (PipelineRun& run : measured.runs) {
      for (Box& box : run.boxes) rate_of(box) = (rate_of(box) + median) / 2;
    }
  };
  steady([](Box& box) -> double& { return box.memory.read_bytes; });
  steady([](Box& box) -> double& { return box.cpu.multiply_adds; });
  steady([](Box& box) -> double& { return box.cpu.attention_multiply_adds; });
  return measured;
}

absl::StatusOr<ForetoldRun> Foretell(const ModelConfig& config, const ModelCost& cost,
                                     const PipelineRun& run) {
  const auto num_stages = static_cast<int>(run.stages.size());
  std::vector<BoxStage> stages;
  std::vector<Box> beside_steps;
  for (size_t i = 0; i < run.stages.size(); ++i) {
    stages.push_back({&run.boxes[i], run.stages[i]});
    beside_steps.push_back(
        WithoutSteps(config, run.stages[i], num_stages, run.prefill_chunk, run.boxes[i]));
  }
  DecodeLoad load;
  load.jobs = run.kv_jobs;
  load.context_tokens = run.context_tokens;
  load.kv_dtype = run.kv_dtype;
  load.decoding = static_cast<int64_t>(run.jobs.size());
  load.routing = Routing::kEven;

  ForetoldRun foretold;
  CARAVAN_ASSIGN_OR_RETURN(const SimulatedPipeline pipeline,
                           SimulateBoxes(config, cost, stages, load, run.prefill_chunk));
  const Simulation result = Simulate(pipeline, run.jobs, std::numeric_limits<double>::infinity());
  foretold.simulated = FiguresOf(run.jobs, result);
  foretold.stage_busy_seconds = result.busy_seconds;

  // Half of each reply is there in the mean, where all decode.
  int64_t attended = 0;
  for (const SimulatedJob& job : run.jobs) attended += job.prompt_tokens + job.reply_tokens / 2;
  load.attended = attended / static_cast<int64_t>(run.jobs.size());
  for (size_t i = 0; i < stages.size(); ++i) stages[i].box = &beside_steps[i];
  CARAVAN_ASSIGN_OR_RETURN(const PipelineTime time, PredictPipeline(config, cost, stages, load));
  foretold.plan_seconds_per_token = time.seconds_per_token;
  for (size_t i = 0; i < time.stages.size(); ++i) {
    const bool all = time.stages[i].expert_slots == cost.Of(run.stages[i]).num_experts;
    foretold.stage_expert_slots.push_back(all ? 0 : time.stages[i].expert_slots);
  }
  if (run.jobs.size() == 1) {
    for (size_t i = 0; i < stages.size(); ++i) stages[i].box = &run.boxes[i];
    CARAVAN_ASSIGN_OR_RETURN(foretold.plan_first_token_seconds,
                             PredictFirstToken(config, cost, stages, load,
                                               run.jobs[0].prompt_tokens, run.prefill_chunk));
  }
  return foretold;
}

std::string PipelinesTable(const std::vector<PipelineRun>& runs,
                           const std::vector<ForetoldRun>& foretold) {
  std::string table =
      "| run | tokens/s: measured | simulated | ratio | first token, s: measured | simulated | "
      "ratio | plan | a token, ms: measured | simulated | ratio | plan | ratio |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (size_t i = 0; i < runs.size(); ++i) {
    const PipelineFigures& measured = runs[i].measured;
    const PipelineFigures& simulated = foretold[i].simulated;
    const double plan_first = foretold[i].plan_first_token_seconds;
    absl::StrAppendFormat(
        &table,
        "| %s | %.2f | %.2f | %.2f | %.3f | %.3f | %.2f | %s | %.1f | %.1f | %.2f | %.1f | %.2f "
        "|\n",
        runs[i].name, measured.tokens_per_second, simulated.tokens_per_second,
        simulated.tokens_per_second / measured.tokens_per_second, measured.first_token_seconds,
        simulated.first_token_seconds, simulated.first_token_seconds / measured.first_token_seconds,
        plan_first == 0
            ? std::string("")
            : absl::StrFormat("%.3f (%.2f)", plan_first, plan_first / measured.first_token_seconds),
        1e3 * measured.seconds_per_token, 1e3 * simulated.seconds_per_token,
        simulated.seconds_per_token / measured.seconds_per_token,
        1e3 * foretold[i].plan_seconds_per_token,
        foretold[i].plan_seconds_per_token / measured.seconds_per_token);
  }
  return table;
}

}  // namespace caravan
