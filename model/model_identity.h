#ifndef CARAVAN_MODEL_MODEL_IDENTITY_H_
#define CARAVAN_MODEL_MODEL_IDENTITY_H_

// Which weights a model has, for what is kept of them longer than a process lives.

#include <string>

#include "absl/status/statusor.h"
#include "model/stored_model.h"

namespace caravan {

/// Text that changes when the model at `path` (as OpenStoredModel takes it) does. Of a packed model
/// its fingerprint, which covers all bytes. Else also the names, sizes and times of its files (all
/// of a split set, whichever is named), as
/// to read them takes too long: a copy counts as another model, and one changed behind the clock's
/// back as the same. Errors: NotFound, PermissionDenied - a file cannot be looked at; names it.
absl::StatusOr<std::string> ModelIdentity(const StoredModel& model, const std::string& path);

}  // namespace caravan

#endif  // CARAVAN_MODEL_MODEL_IDENTITY_H_
