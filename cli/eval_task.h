#ifndef CARAVAN_CLI_EVAL_TASK_H_
#define CARAVAN_CLI_EVAL_TASK_H_

// What a line of a tasks file asks a model.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// A question to be answered word for word, or, with choices, by choosing one of them.
struct EvalTask {
  std::string task = "all";  // tasks of one name are counted together
  std::string origin;        // FILE:LINE
  std::string question;      // of a chat
  std::string prompt;        // plain text that the choices go on; without a question
  std::string answer;        // without choices
  std::vector<std::string> choices;
  size_t right_choice = 0;
};

/// A line of JSON: `question` and `answer`, strings; or `choices`, an array of at least 2 strings,
/// with `question` or `prompt`, and `answer`, the index from 0 of the right choice, or its text.
/// Either has `task` too, a string, or not; other fields are let be.
/// Errors: InvalidArgument - names `origin` and the field.
absl::StatusOr<EvalTask> ParseEvalTask(absl::string_view line, const std::string& origin);

/// The file's lines but for empty ones. Errors: as ReadFile and ParseEvalTask, with FILE:LINE for
/// origin; InvalidArgument - there are none.
absl::StatusOr<std::vector<EvalTask>> ReadEvalTasks(const std::string& path);

}  // namespace caravan

#endif  // CARAVAN_CLI_EVAL_TASK_H_
