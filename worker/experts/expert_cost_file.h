#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_COST_FILE_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_COST_FILE_H_

// Costs of experts, kept for the next start on the same box. docs/packed-format.md has the file.

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/experts/expert_costs.h"

namespace caravan {

/// `directory`/expert-costs-NAME.json, with a name of 16 hexadecimal digits for what they are
/// measured for: so a stage of other layers finds those of the one before it, and workers that
/// share the directory have a file each where their costs differ.
std::string ExpertCostPath(absl::string_view directory, absl::string_view measured_for);

/// All of it, for programs.
nlohmann::json ExpertCostsJson(const ExpertCosts& costs);

/// measured_for: all that the costs depend on, in words. Writes the file whole or not at all.
/// Errors: as OutputFile.
absl::Status WriteExpertCosts(const std::string& path, absl::string_view measured_for,
                              const ExpertCosts& costs);

/// Errors: NotFound - no such file; InvalidArgument - it is damaged, of another version, or was
///         measured for something else. Each names the path.
absl::StatusOr<ExpertCosts> LoadExpertCosts(const std::string& path,
                                            absl::string_view measured_for);

/// Those of the file; where it is missing or of no use, which is a line of the log, what `measure`
/// says, which is written there. That it cannot be written is a warning. An empty path: nothing is
/// kept. Errors: those of `measure`.
absl::StatusOr<ExpertCosts> KeptExpertCosts(
    const std::string& path, absl::string_view measured_for,
    absl::FunctionRef<absl::StatusOr<ExpertCosts>()> measure);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_COST_FILE_H_
