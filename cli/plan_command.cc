// caravan plan: what boxes in a row are predicted to give, before anybody buys them.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/aim_option.h"
#include "cli/commands.h"
#include "cli/plan_page.h"
#include "cli/plan_report.h"
#include "cli/shape_flags.h"
#include "cluster/known_boxes.h"
#include "model/stored_model.h"
#include "model/stored_model_cost.h"

namespace caravan {
namespace {

constexpr int kCounts[] = {1, 2, 4, 8, 12};
constexpr int64_t kPromptTokens = 1024;

struct PlanFlags {
  ShapeFlags shape;
  std::string file;                           // of boxes
  std::vector<std::string> kinds = {"3060"};  // where there is no file
  std::vector<int> counts;                    // empty: kCounts, as far as there are layers
  std::string network = "1gbe";               // between boxes of kinds
  std::vector<int> jobs = {1, 8, 32, 128, 256, 512};
  int64_t context = 2048;
  int64_t prompt = 0;  // 0: kPromptTokens, or the context where that is less
  PlanAim aim = PlanAim::kBulk;
  DType kv_dtype = DType::kF16;
  double target = 0;  // tokens/s
  std::string html;   // a path
};

/// "2 boxes 3060, 1 box cpu".
std::string Sum(const std::vector<BoxCount>& boxes) {
  return absl::StrJoin(boxes, ", ", [](std::string* out, const BoxCount& kind) {
    absl::StrAppend(out, kind.count, kind.count == 1 ? " box " : " boxes ", kind.box.name);
  });
}

absl::StatusOr<PlanGroup> GroupOfFile(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(std::vector<BoxCount> boxes, ReadBoxes(path));
  PlanGroup group;
  group.title = absl::StrCat(path, ": ", Sum(boxes));
  int count = 0;
  for (const BoxCount& kind : boxes) {
    count += kind.count;
    group.lines.push_back(absl::StrCat(kind.box.name, ": ", DescribeBox(kind.box)));
  }
  group.rows.push_back({absl::StrCat(count), std::move(boxes)});
  return group;
}

absl::StatusOr<PlanGroup> GroupOfKind(const PlanFlags& flags, const std::string& kind,
                                      const std::vector<int>& counts) {
  absl::StatusOr<Box> box = FindBox(kind);
  if (!box.ok()) return Annotate(box.status(), "--box");
  absl::StatusOr<Box::Network> network = FindPart<Box::Network>(flags.network);
  if (!network.ok()) return Annotate(network.status(), "--network");
  box->network = *std::move(network);
  PlanGroup group;
  group.title = absl::StrCat("box ", kind, ": ", DescribeBox(*box));
  for (const int count : counts) {
    group.rows.push_back({absl::StrCat(count), std::vector<BoxCount>{{*box, count}}});
  }
  return group;
}

absl::StatusOr<std::vector<PlanGroup>> Groups(const PlanFlags& flags, int num_layers) {
  std::vector<PlanGroup> groups;
  if (!flags.file.empty()) {
    CARAVAN_ASSIGN_OR_RETURN(groups.emplace_back(), GroupOfFile(flags.file));
    return groups;
  }
  std::vector<int> counts = flags.counts;
  if (counts.empty()) {
    for (const int count : kCounts) {
      if (count <= num_layers) counts.push_back(count);
    }
  }
  for (const int count : counts) {
    if (count > num_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("--count: ", count, " boxes for ", num_layers, " layers"));
    }
  }
  for (const std::string& kind : flags.kinds) {
    CARAVAN_ASSIGN_OR_RETURN(groups.emplace_back(), GroupOfKind(flags, kind, counts));
  }
  return groups;
}

absl::Status WritePage(const std::string& path, const PlanReport& report) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(PlanPage(report)));
  return file->Commit();
}

absl::Status Plan(const PlanFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, flags.shape.Open());
  PlanQuestion question;
  question.config = model->config();
  CARAVAN_ASSIGN_OR_RETURN(question.cost, CostOfStoredModel(*model));
  question.model = flags.shape.model;
  CARAVAN_ASSIGN_OR_RETURN(question.groups, Groups(flags, question.config.num_hidden_layers));
  CARAVAN_RETURN_IF_ERROR(CheckContext(question.config, flags.context, flags.kv_dtype));
  if (flags.prompt > flags.context) {
    return absl::InvalidArgumentError("--prompt: more tokens than --context");
  }
  question.jobs = flags.jobs;
  question.load.decode = {.jobs = 1, .context_tokens = flags.context, .kv_dtype = flags.kv_dtype};
  question.load.aim = flags.aim;
  question.load.prompt_tokens =
      flags.prompt > 0 ? flags.prompt : std::min(kPromptTokens, flags.context);
  question.target = flags.target;
  CARAVAN_ASSIGN_OR_RETURN(const PlanReport report, MakePlanReport(std::move(question)));
  std::fputs(PlanText(report).c_str(), stdout);
  if (flags.html.empty()) return absl::OkStatus();
  absl::Status written = WritePage(flags.html, report);
  if (!written.ok()) return Annotate(written, "--html");
  return written;
}

void AddLoadOptions(CLI::App& command, PlanFlags& flags) {
  command
      .add_option("--jobs", flags.jobs,
                  "How many jobs decode at once. One number for one set of boxes shows all of the "
                  "plan, and what to buy next; several show a table of rates")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--context", flags.context, "Tokens of each job's context")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command
      .add_option("--prompt", flags.prompt, "Tokens of the prompt whose first token is waited for")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->default_str(absl::StrCat(kPromptTokens, ", at most the context"));
  AddAimOption(command, flags.aim,
               "bulk: most tokens/s of all jobs together; interactive: most of one that decodes "
               "alone, with room for the others' KV caches");
  AddKvOption(command, flags.kv_dtype);
}

void AddBoxOptions(CLI::App& command, PlanFlags& flags) {
  CLI::Option* const file = command.add_option(
      "--boxes", flags.file,
      "The boxes that there are, as JSON: {\"boxes\": [{\"box\": \"3060\", \"count\": 2}, "
      "{\"file\": "
      "\"a.json\"}], \"network\": \"1gbe\"}, or what `caravan probe` writes. Some may stay unused");
  std::vector<std::string> names;
  for (const Box& box : KnownBoxes()) names.push_back(box.name);
  command
      .add_option("--box", flags.kinds,
                  absl::StrCat("In place of a file: kinds of box, a table each: ",
                               absl::StrJoin(names, ", ")))
      ->delimiter(',')
      ->excludes(file)
      ->capture_default_str();
  command.add_option("--count", flags.counts, "How many of them, a row each, at most one a layer")
      ->delimiter(',')
      ->check(CLI::Range(1, 1000))
      ->excludes(file)
      ->default_str(absl::StrCat("[", absl::StrJoin(kCounts, ","), "]"));
  command.add_option("--network", flags.network, "Between them: 1gbe, 2.5gbe or 10gbe")
      ->excludes(file)
      ->capture_default_str();
}

}  // namespace

void AddPlanCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "plan",
      "Predict what boxes in a row give for a model, from their rates and its sizes: the best "
      "split of its layers, what bounds it, and what to buy next");
  const auto flags = std::make_shared<PlanFlags>();
  AddConfigOption(*command);
  flags->shape.AddTo(*command);
  AddBoxOptions(*command, *flags);
  AddLoadOptions(*command, *flags);
  command->add_option("--target", flags->target, "Mark what reaches so many tokens/s")
      ->check(CLI::Range(0.0, 1e9));
  command->add_option("--html", flags->html, "Write all of it, with plots, as a page to this file")
      ->type_name("FILE");
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Plan(*flags)); }; });
}

}  // namespace caravan
