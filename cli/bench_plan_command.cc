// caravan bench plan: what pipelines of real processes give, beside what caravan plan and caravan
// simulate foretell of them; or a table of such runs, as they are foretold now.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/byte_size.h"
#include "base/cpu_model.h"
#include "base/file.h"
#include "base/json.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/measured_pipelines.h"
#include "cli/pipeline_bench.h"
#include "cli/shape_flags.h"
#include "cli/thread_count.h"
#include "cli/validators.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

constexpr int64_t kMostFileBytes = int64_t{64} << 20;

struct BenchPlanFlags {
  ShapeFlags shape;
  PipelineBenchOptions bench;
  std::vector<int> workers = {1, 2, 3};
  std::vector<std::string> loads = {"1:192:24", "4:48:24", "16:32:24"};
  std::string ram;
  std::string link;
  std::string out;
  std::string foretell;
};

/// "JOBS:PROMPT:REPLY".
absl::StatusOr<PipelineLoad> ParseLoad(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  PipelineLoad load;
  if (parts.size() == 3 && absl::SimpleAtoi(parts[0], &load.jobs) &&
      absl::SimpleAtoi(parts[1], &load.prompt_tokens) &&
      absl::SimpleAtoi(parts[2], &load.reply_tokens) && load.jobs >= 1 && load.jobs <= 256 &&
      load.prompt_tokens >= 8 && load.prompt_tokens <= 1 << 16 && load.reply_tokens >= 3 &&
      load.reply_tokens <= 1 << 16) {
    return load;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--loads: \"", text,
      "\" is not JOBS:PROMPT:REPLY, such as 4:48:24, with prompts of 8 tokens or more and replies "
      "of 3 or more"));
}

/// "BYTES/MILLISECONDS".
absl::StatusOr<std::optional<LinkShape>> ParseLink(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  double megabytes = 0;
  double milliseconds = 0;
  if (parts.size() != 2 || !absl::SimpleAtod(parts[0], &megabytes) ||
      !absl::SimpleAtod(parts[1], &milliseconds) || !(megabytes > 0) || megabytes > 1e5 ||
      !(milliseconds >= 0) || milliseconds > 1e4) {
    return absl::InvalidArgumentError(
        absl::StrCat("--link: \"", text, "\" is not MB-PER-SECOND/MILLISECONDS, such as 117/0.2"));
  }
  return LinkShape{1e6 * megabytes, absl::Milliseconds(milliseconds)};
}

/// The formats that the model's experts and other matrices are in.
PackTypes TypesOf(const StoredModel& model) {
  PackTypes types;
  const int64_t layer = model.config().first_k_dense_replace;
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const auto type_of = [&](const std::string& name, std::optional<DType>& type) {
    const TensorInfo* const info = model.Find(prefix + name);
    if (info != nullptr) type = info->dtype;
  };
  type_of("mlp.experts.0.gate_proj.weight", types.experts);
  type_of("self_attn.o_proj.weight", types.dense);
  return types;
}

/// What is in the file already, but for runs of the same names.
absl::StatusOr<MeasuredPipelines> Earlier(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMostFileBytes));
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, path));
  return PipelinesFromJson(json, path);
}

absl::Status Write(const MeasuredPipelines& measured, const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(PipelinesToJson(measured).dump(1) + "\n"));
  return file->Commit();
}

absl::Status PrintTable(const StoredModel& model, const ModelCost& cost,
                        const std::vector<PipelineRun>& runs) {
  std::vector<ForetoldRun> foretold;
  for (const PipelineRun& run : runs) {
    CARAVAN_ASSIGN_OR_RETURN(foretold.emplace_back(), Foretell(model.config(), cost, run));
  }
  std::fputs(PipelinesTable(runs, foretold).c_str(), stdout);
  return absl::OkStatus();
}

absl::Status ForetellTable(const BenchPlanFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, flags.shape.Open());
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model));
  CARAVAN_ASSIGN_OR_RETURN(const MeasuredPipelines measured, Earlier(flags.foretell));
  if (cost.Of({0, model->config().num_hidden_layers, true, true}).weight_bytes !=
      measured.weight_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("--model: not the one that ", flags.foretell,
                                                   " is about: the weights are not as large"));
  }
  return PrintTable(*model, cost, WithSteadyBoxes(measured).runs);
}

absl::Status BenchPlan(BenchPlanFlags flags) {
  if (!flags.foretell.empty()) return ForetellTable(flags);
  for (const std::string& load : flags.loads) {
    CARAVAN_ASSIGN_OR_RETURN(flags.bench.loads.emplace_back(), ParseLoad(load));
  }
  CARAVAN_ASSIGN_OR_RETURN(flags.bench.link, ParseLink(flags.link));
  if (!flags.ram.empty()) {
    const absl::StatusOr<int64_t> ram = ParseByteSize(flags.ram);
    if (!ram.ok()) return Annotate(ram.status(), "--ram");
    flags.bench.ram = *ram;
  }
  CARAVAN_ASSIGN_OR_RETURN(flags.bench.threads, ThreadCount(flags.bench.threads));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, flags.shape.Open());
  CARAVAN_RETURN_IF_ERROR(CheckBenchWorkers(*model, flags.workers, flags.bench.kv_dtype));
  CARAVAN_ASSIGN_OR_RETURN(const ModelCost cost, CostOfStoredModel(*model));
  MeasuredPipelines measured;
  if (!flags.out.empty() && FileExists(flags.out)) {
    CARAVAN_ASSIGN_OR_RETURN(measured, Earlier(flags.out));
  }
  measured.machine = CpuModel();
  measured.config_json = model->config_json();
  measured.types = TypesOf(*model);
  measured.weight_bytes = cost.Of({0, model->config().num_hidden_layers, true, true}).weight_bytes;

  std::vector<PipelineRun> runs;
  PipelineBench bench(*model, flags.bench);
  for (const int workers : flags.workers) {
    CARAVAN_ASSIGN_OR_RETURN(std::vector<PipelineRun> more, bench.Measure(workers));
    for (PipelineRun& run : more) {
      std::erase_if(measured.runs, [&](const PipelineRun& old) { return old.name == run.name; });
      measured.runs.push_back(run);
      runs.push_back(std::move(run));
    }
    // Whatever becomes of the next ones.
    if (!flags.out.empty()) CARAVAN_RETURN_IF_ERROR(Write(measured, flags.out));
  }
  return PrintTable(*model, cost, runs);
}

}  // namespace

void AddBenchPlanCommand(CLI::App& bench, CommandBody& body) {
  CLI::App* const command = bench.add_subcommand(
      "plan",
      "Measure pipelines of real processes on parts of this machine, and the parts, beside what "
      "caravan plan and caravan simulate foretell");
  const auto flags = std::make_shared<BenchPlanFlags>();
  AddConfigOption(*command);
  flags->shape.AddTo(*command);
  command->get_option("--model")->description(
      "A pack of random weights, as caravan synth makes it; with --foretell its config.json will "
      "do");
  command->add_option("--workers", flags->workers, "Pipelines of so many workers")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--loads", flags->loads,
                   "Jobs that come at once, with the tokens of their prompts and replies")
      ->delimiter(',')
      ->type_name("JOBS:PROMPT:REPLY,...")
      ->capture_default_str();
  command->add_option("--rounds", flags->bench.rounds, "Runs of each; their medians count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--threads", flags->bench.threads, "Of each worker; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option("--ram", flags->ram,
                   "Memory of all workers together, such as 6GiB, shared out evenly; what of the "
                   "experts it does not hold stays on disk")
      ->type_name("SIZE");
  command
      ->add_option("--link", flags->link,
                   "What the links between workers give each way; loopback if not given")
      ->type_name("MB-PER-SECOND/MILLISECONDS");
  command
      ->add_option("--box-command", flags->bench.box_command,
                   "A program that runs a command as one of several boxes, as bench/as_box.sh "
                   "does: called with the box's number, or \"coordinator\", and the command")
      ->type_name("PROGRAM");
  command
      ->add_option("--disk", flags->bench.disk_directory,
                   "Where the disk is probed; where the model lies if not given")
      ->type_name("DIRECTORY");
  command->add_option("--probe-seconds", flags->bench.probe_seconds, "As caravan probe --seconds")
      ->check(CLI::Range(0.01, 10.0))
      ->capture_default_str();
  command->add_option("--label", flags->bench.label, "What the runs are called")
      ->default_str("memory");
  flags->bench.label = "memory";
  command
      ->add_option("--out", flags->out,
                   "Add the runs to FILE, as JSON, in place of those of the same names")
      ->type_name("FILE");
  command
      ->add_option("--foretell", flags->foretell,
                   "Measure nothing: show the runs of FILE beside what is foretold of them now")
      ->type_name("FILE");
  AddKvOption(*command, flags->bench.kv_dtype);
  command->add_option("--seed", flags->bench.seed, "Of the jobs")->capture_default_str();
  command->callback([flags, &body] {
    flags->bench.model = flags->shape.model;
    if (flags->bench.disk_directory.empty()) flags->bench.disk_directory = flags->bench.model;
    body = [flags] { return ReportStatus(BenchPlan(*flags)); };
  });
}

}  // namespace caravan
