#include "cli/eval_task.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Of a file of tasks; far more than anybody asks.
constexpr int64_t kMaxTasksBytes = int64_t{1} << 30;

absl::Status ReadChoices(const nlohmann::json& json, const JsonFields& fields, EvalTask& task) {
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json* const choices, fields.Array("choices"));
  for (const nlohmann::json& choice : *choices) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty()) {
      return fields.Error("choices", "must hold strings that are not empty");
    }
    task.choices.push_back(choice.get<std::string>());
  }
  if (task.choices.size() < 2) return fields.Error("choices", "must hold at least 2 strings");
  if (fields.Has("answer") && json["answer"].is_string()) {
    const auto right = std::find(task.choices.begin(), task.choices.end(),
                                 json["answer"].get_ref<const std::string&>());
    if (right == task.choices.end()) return fields.Error("answer", "is none of the choices");
    task.right_choice = static_cast<size_t>(right - task.choices.begin());
    return absl::OkStatus();
  }
  CARAVAN_ASSIGN_OR_RETURN(const int64_t index,
                           fields.Int("answer", 0, static_cast<int64_t>(task.choices.size()) - 1));
  task.right_choice = static_cast<size_t>(index);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EvalTask> ParseEvalTask(absl::string_view line, const std::string& origin) {
  CARAVAN_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(line, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, origin));
  EvalTask task;
  task.origin = origin;
  CARAVAN_ASSIGN_OR_RETURN(task.task, fields.String("task", task.task));
  if (fields.Has("prompt")) {
    if (fields.Has("question")) return fields.Error("prompt", "excludes \"question\"");
    if (!fields.Has("choices")) return fields.Error("prompt", "needs \"choices\"");
    CARAVAN_ASSIGN_OR_RETURN(task.prompt, fields.String("prompt"));
    if (task.prompt.empty()) return fields.Error("prompt", "is empty");
  } else {
    CARAVAN_ASSIGN_OR_RETURN(task.question, fields.String("question"));
  }
  if (fields.Has("choices")) {
    CARAVAN_RETURN_IF_ERROR(ReadChoices(json, fields, task));
  } else {
    CARAVAN_ASSIGN_OR_RETURN(task.answer, fields.String("answer"));
  }
  return task;
}

absl::StatusOr<std::vector<EvalTask>> ReadEvalTasks(const std::string& path) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTasksBytes));
  std::vector<EvalTask> tasks;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    CARAVAN_ASSIGN_OR_RETURN(EvalTask task, ParseEvalTask(line, absl::StrCat(path, ":", number)));
    tasks.push_back(std::move(task));
  }
  if (tasks.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no tasks"));
  return tasks;
}

}  // namespace caravan
