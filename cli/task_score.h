#ifndef CARAVAN_CLI_TASK_SCORE_H_
#define CARAVAN_CLI_TASK_SCORE_H_

// Asks a model the questions of a tasks file and counts what it gets right.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval_task.h"
#include "coordinator/pipeline_driver.h"
#include "model/text_model.h"

namespace caravan {

struct TaskScore {
  int total = 0;
  int right = 0;           // word for word; of choices, by log-probability
  int right_per_byte = 0;  // of choices, by log-probability a byte
};

struct TaskScores {
  std::map<std::string, TaskScore> answers;  // by task
  std::map<std::string, TaskScore> choices;
};

struct TaskScoreOptions {
  int jobs = 8;              // at once: each a question, or a question with one of its choices
  int64_t max_tokens = 512;  // longest reply
};

/// A reply counts by its text past the thought, without space around. The tokens of a choice follow
/// those of the chat's prompt, or of the plain prompt; they are the choice's own, whatever the text
/// before it.
/// REQUIRES: options.jobs >= 1.
/// Errors: as ChatTemplate::Encode, PipelineDriver::Submit and JobHandle::Next; each names the
///         task's origin.
absl::StatusOr<TaskScores> ScoreTasks(const std::vector<EvalTask>& tasks, const TextModel& text,
                                      PipelineDriver& driver, const TaskScoreOptions& options);

}  // namespace caravan

#endif  // CARAVAN_CLI_TASK_SCORE_H_
