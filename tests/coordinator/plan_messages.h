#ifndef CARAVAN_TESTS_COORDINATOR_PLAN_MESSAGES_H_
#define CARAVAN_TESTS_COORDINATOR_PLAN_MESSAGES_H_

// What orders and reports say of a plan: those by which a stage is loaded, prepared or dropped, and
// by which a worker tells what came of it.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "caravan/v1/cluster.pb.h"

namespace caravan {

/// Which plan it is of.
inline uint64_t PlanOf(const v1::WorkerOrder& order) {
  return order.has_load_stage()      ? order.load_stage().plan_version()
         : order.has_prepare_stage() ? order.prepare_stage().stage().plan_version()
                                     : order.drop_stage().plan_version();
}

inline uint64_t PlanOf(const v1::WorkerReport& report) {
  return report.has_ready()      ? report.ready().plan_version()
         : report.has_prepared() ? report.prepared().plan_version()
                                 : report.failure().plan_version();
}

/// A letter for each kind.
inline std::string Kind(const v1::WorkerOrder& order) {
  return order.has_load_stage() ? "L" : order.has_prepare_stage() ? "P" : "D";
}
inline std::string Kind(const v1::WorkerReport& report) {
  return report.has_ready()      ? "R"
         : report.has_prepared() ? "P"
                                 : absl::StrCat("F", report.failure().code(), ".");
}

inline v1::WorkerReport Failure(uint64_t plan, absl::StatusCode code, const std::string& message) {
  v1::WorkerReport report;
  report.mutable_failure()->set_plan_version(plan);
  report.mutable_failure()->set_code(static_cast<int>(code));
  report.mutable_failure()->set_message(message);
  return report;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_PLAN_MESSAGES_H_
