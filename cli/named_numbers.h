#ifndef CARAVAN_CLI_NAMED_NUMBERS_H_
#define CARAVAN_CLI_NAMED_NUMBERS_H_

// Values of options that are several numbers: zipf=0.8,sticky=0.3.

#include <cstdint>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace caravan {

/// A name, and where its number goes.
using NamedNumber = std::pair<absl::string_view, std::variant<double*, int*, int64_t*, uint64_t*>>;

/// Sets those that `text` names; the others stay.
/// Errors: InvalidArgument - a part that is no NAME=NUMBER among them.
absl::Status ParseNamedNumbers(absl::string_view text, absl::Span<const NamedNumber> numbers);

}  // namespace caravan

#endif  // CARAVAN_CLI_NAMED_NUMBERS_H_
