#include "cli/aim_option.h"

namespace caravan {

void AddAimOption(CLI::App& command, PlanAim& aim, const std::string& help) {
  command
      .add_option_function<std::string>(
          "--for",
          [&aim](const std::string& name) {
            aim = name == "interactive" ? PlanAim::kInteractive : PlanAim::kBulk;
          },
          help)
      ->check(CLI::IsMember({"interactive", "bulk"}))
      ->type_name("interactive|bulk")
      ->default_str(aim == PlanAim::kInteractive ? "interactive" : "bulk");
}

}  // namespace caravan
