// caravan plan: what a row of boxes is predicted to give, before anybody buys it.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/byte_size.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/pack_flags.h"
#include "cli/xy_chart.h"
#include "cluster/box.h"
#include "cluster/known_boxes.h"
#include "cluster/step_time.h"
#include "kernels/kv_rows.h"
#include "model/layer_cost.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"
#include "model/synth/synthetic_model.h"

namespace caravan {
namespace {

constexpr int kCounts[] = {1, 2, 4, 8, 12};

struct PlanFlags {
  std::string model;
  PackFlags pack;
  std::vector<std::string> boxes = {"3060"};
  std::vector<int> counts;  // empty: kCounts, as far as there are layers
  std::vector<int> jobs = {1, 8, 32, 128, 256, 512};
  int64_t context = 2048;
  DType kv_dtype = DType::kF16;
  double target = 0;  // tokens/s
};

/// The model at --model: a stored one, or the shape of a config.json.
absl::StatusOr<std::unique_ptr<StoredModel>> OpenModel(const PlanFlags& flags) {
  if (!absl::EndsWith(flags.model, ".json")) {
    if (flags.pack.preset.empty() && flags.pack.experts.empty() && flags.pack.dense.empty()) {
      return OpenStoredModel(flags.model);
    }
    return absl::InvalidArgumentError(absl::StrCat("--preset, --experts, --dense: ", flags.model,
                                                   " has its formats; they are for a config.json"));
  }
  SyntheticModel::Options shape;
  shape.config_path = flags.model;
  CARAVAN_ASSIGN_OR_RETURN(shape.types, flags.pack.Types());
  return SyntheticModel::Create(shape);
}

/// "0.42 disk", or "-" where the boxes have not the memory.
std::string Cell(const absl::StatusOr<PipelineTime>& time, double target) {
  if (!time.ok()) return "-";
  const std::string rate = absl::StrFormat("%.2f", time->tokens_per_second);
  const bool reached = target > 0 && time->tokens_per_second >= target;
  return absl::StrCat(reached ? absl::StrCat("**", rate, "**") : rate, " ",
                      BottleneckName(time->slowest.bottleneck));
}

/// "95% to 74%", of the first to the last; "95%" where they are one; "-" where there are none.
std::string ShareCell(const std::vector<double>& shares) {
  if (shares.empty()) return "-";
  const std::string first = absl::StrFormat("%.0f%%", 100 * shares.front());
  const std::string last = absl::StrFormat("%.0f%%", 100 * shares.back());
  return first == last ? first : absl::StrCat(first, " to ", last);
}

/// The chunk and its rate with what bounds it.
std::string PromptCells(const absl::StatusOr<PromptTime>& time) {
  if (!time.ok()) return "- | -";
  return absl::StrFormat("%d | %.1f %s", time->chunk_tokens, time->tokens_per_second,
                         BottleneckName(time->slowest.bottleneck));
}

absl::Status Predict(const PlanFlags& flags, const ModelConfig& config, const ModelCost& cost,
                     const Box& box) {
  std::printf("\nbox %s: disk %.1f GB/s, memory %s at %.1f GB/s, %.0f G multiply-adds/s",
              box.name.c_str(), box.disk.read_bytes / 1e9, FormatByteSize(box.memory.bytes).c_str(),
              box.memory.read_bytes / 1e9, box.cpu.multiply_adds / 1e9);
  if (box.card.all_bytes() > 0) {
    std::printf("; card %s at %.0f GB/s, %.0f G", FormatByteSize(box.card.all_bytes()).c_str(),
                box.card.read_bytes / 1e9, box.card.multiply_adds / 1e9);
  }
  std::printf("\n\n| boxes | experts in memory |");
  for (const int jobs : flags.jobs) std::printf(" %d job%s |", jobs, jobs == 1 ? "" : "s");
  std::printf(" prompts: chunk | tokens/s |\n|---|---|---|---|");
  for (size_t i = 0; i < flags.jobs.size(); ++i) std::printf("---|");
  std::printf("\n");
  std::vector<std::vector<double>> rates;
  absl::Status lacking;
  for (const int count : flags.counts) {
    std::vector<std::string> cells;
    std::vector<double>& line = rates.emplace_back();
    std::vector<double> shares;
    for (const int jobs : flags.jobs) {
      const absl::StatusOr<PipelineTime> time = PredictPipeline(
          config, cost, box, count,
          {.jobs = jobs, .context_tokens = flags.context, .kv_dtype = flags.kv_dtype});
      lacking.Update(time.status());
      if (time.ok()) shares.push_back(time->slowest.expert_share);
      line.push_back(time.ok() ? time->tokens_per_second : 0);
      cells.push_back(Cell(time, flags.target));
    }
    cells.push_back(PromptCells(PredictPrompts(config, cost, box, count,
                                               {.jobs = flags.jobs.front(),
                                                .context_tokens = flags.context,
                                                .kv_dtype = flags.kv_dtype})));
    std::printf("| %d | %s | %s |\n", count, ShareCell(shares).c_str(),
                absl::StrJoin(cells, " | ").c_str());
  }
  if (!lacking.ok()) {
    std::printf("\n-: not enough memory; the first of them: %s\n",
                std::string(lacking.message()).c_str());
  }
  PrintXyChart({.title = absl::StrCat("predicted tokens/s by jobs at once; lines: ",
                                      absl::StrJoin(flags.counts, ", "), " boxes"),
                .x_name = "jobs",
                .x = flags.jobs,
                .y_name = "tokens/s",
                .lines = std::move(rates),
                .decimals = 2});
  return absl::OkStatus();
}

absl::Status Plan(PlanFlags flags) {
  std::vector<Box> boxes;
  for (const std::string& name : flags.boxes) {
    absl::StatusOr<Box> box = FindBox(name);
    if (!box.ok()) return Annotate(box.status(), "--box");
    boxes.push_back(*std::move(box));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, OpenModel(flags));
  const ModelConfig& config = model->config();
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model));
  if (flags.counts.empty()) {
    for (const int count : kCounts) {
      if (count <= config.num_hidden_layers) flags.counts.push_back(count);
    }
  }
  for (const int count : flags.counts) {
    if (count > config.num_hidden_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("--boxes: ", count, " boxes for ", config.num_hidden_layers, " layers"));
    }
  }
  if (flags.context > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context: the model has positions up to ", config.max_position_embeddings));
  }
  if (absl::Status valid = CheckKvDType(config.Mla(), flags.kv_dtype); !valid.ok()) {
    return Annotate(valid, "--kv");
  }
  StageSpec whole;
  whole.end_layer = config.num_hidden_layers;
  whole.embeds = whole.has_head = true;
  const LayerCost sum = cost.Of(whole);
  std::printf(
      "a prediction, not a measurement: tokens/s of all jobs together while they decode, and what "
      "bounds the slowest stage; experts in memory: of that stage, from the first number of jobs "
      "to the last that fits; prompts: the --prefill-chunk with which reading and computing "
      "take as long, and tokens/s while every stage has one, for the first number of jobs\n"
      "model %s: %s, of which %s are always active; contexts of %lld tokens, KV in %s\n",
      flags.model.c_str(), FormatByteSize(sum.weight_bytes).c_str(),
      FormatByteSize(sum.always_active_bytes()).c_str(), static_cast<long long>(flags.context),
      KvOptionName(flags.kv_dtype).c_str());
  if (flags.target > 0) std::printf("**bold**: at least %g tokens/s\n", flags.target);
  for (const Box& box : boxes) CARAVAN_RETURN_IF_ERROR(Predict(flags, config, cost, box));
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "plan", "Predict what boxes in a row give for a model, from their rates and its sizes");
  const auto flags = std::make_shared<PlanFlags>();
  AddConfigOption(*command);
  CLI::Option* const model = command->add_option(
      "--model", flags->model,
      "The model, as other commands take it, or the config.json of one that is not here");
  model->required();
  flags->pack.AddFormats(
      *command, model,
      "the formats are the model's, or those of a checkpoint with that config.json");
  std::vector<std::string> names;
  for (const Box& box : KnownBoxes()) names.push_back(box.name);
  command
      ->add_option("--box", flags->boxes,
                   absl::StrCat("Kinds of box to ask about: ", absl::StrJoin(names, ", ")))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--boxes", flags->counts, "How many of them in a row, at most one a layer")
      ->delimiter(',')
      ->check(CLI::Range(1, 1000))
      ->default_str(absl::StrCat("[", absl::StrJoin(kCounts, ","), "]"));
  command->add_option("--jobs", flags->jobs, "How many jobs decode at once")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--context", flags->context, "Tokens of each job's context")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  AddKvOption(*command, flags->kv_dtype);
  command->add_option("--target", flags->target, "Mark what reaches so many tokens/s")
      ->check(CLI::Range(0.0, 1e9));
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Plan(*flags)); }; });
}

}  // namespace caravan
