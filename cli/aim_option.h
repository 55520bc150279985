#ifndef CARAVAN_CLI_AIM_OPTION_H_
#define CARAVAN_CLI_AIM_OPTION_H_

#include <string>

#include "CLI/CLI.hpp"
#include "cluster/plan_aim.h"

namespace caravan {

/// The option --for interactive|bulk; `help` says what of. Borrows `aim`, which keeps its value
/// without the option.
void AddAimOption(CLI::App& command, PlanAim& aim, const std::string& help);

}  // namespace caravan

#endif  // CARAVAN_CLI_AIM_OPTION_H_
