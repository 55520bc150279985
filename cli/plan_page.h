#ifndef CARAVAN_CLI_PLAN_PAGE_H_
#define CARAVAN_CLI_PLAN_PAGE_H_

// What `caravan plan` has found as a page: one file of HTML that asks nothing of any network, with
// the dashboard's style, light or dark as the reader has it.

#include <string>

#include "cli/plan_report.h"

namespace caravan {

std::string PlanPage(const PlanReport& report);

}  // namespace caravan

#endif  // CARAVAN_CLI_PLAN_PAGE_H_
