#ifndef CARAVAN_COORDINATOR_DASHBOARD_FILES_H_
#define CARAVAN_COORDINATOR_DASHBOARD_FILES_H_

// The files of coordinator/dashboard, put into the binary by the build.

#include <vector>

#include "absl/strings/string_view.h"

namespace caravan {

struct DashboardFile {
  absl::string_view name;  // such as "main.js"
  absl::string_view contents;
};

const std::vector<DashboardFile>& DashboardFiles();

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_DASHBOARD_FILES_H_
