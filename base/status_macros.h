#ifndef CARAVAN_BASE_STATUS_MACROS_H_
#define CARAVAN_BASE_STATUS_MACROS_H_

// Propagation of absl::Status, and the one way to add context to it.

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

/// Returns from the enclosing function when `expr` (an absl::Status) is not OK.
#define CARAVAN_RETURN_IF_ERROR(expr)                                                      \
  do {                                                                                     \
    if (absl::Status caravan_status = (expr); !caravan_status.ok()) return caravan_status; \
  } while (false)

/// Assigns the value of `expr` (an absl::StatusOr) to `lhs`, or returns its error. `lhs` may
/// declare.
#define CARAVAN_ASSIGN_OR_RETURN(lhs, expr) \
  CARAVAN_ASSIGN_OR_RETURN_IMPL_(CARAVAN_CONCAT_(caravan_status_or_, __LINE__), lhs, expr)
#define CARAVAN_CONCAT_INNER_(a, b) a##b
#define CARAVAN_CONCAT_(a, b) CARAVAN_CONCAT_INNER_(a, b)
#define CARAVAN_ASSIGN_OR_RETURN_IMPL_(var, lhs, expr) \
  auto var = (expr);                                   \
  if (!var.ok()) return std::move(var).status();       \
  lhs = *std::move(var)

namespace caravan {

/// `status` with "context: " before its message; OK stays OK. Add context once, where the ids are
/// known.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace caravan

#endif  // CARAVAN_BASE_STATUS_MACROS_H_
