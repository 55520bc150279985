#include "cli/named_numbers.h"

#include <string>
#include <type_traits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace caravan {
namespace {

bool Set(absl::string_view name, absl::string_view value, absl::Span<const NamedNumber> numbers) {
  for (const NamedNumber& number : numbers) {
    if (number.first != name) continue;
    return std::visit(
        [&](auto* out) {
          if constexpr (std::is_same_v<decltype(out), double*>) {
            return absl::SimpleAtod(value, out);
          } else {
            return absl::SimpleAtoi(value, out);
          }
        },
        number.second);
  }
  return false;
}

}  // namespace

absl::Status ParseNamedNumbers(absl::string_view text, absl::Span<const NamedNumber> numbers) {
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> halves = absl::StrSplit(part, '=');
    if (Set(halves.first, halves.second, numbers)) continue;
    std::string names;
    for (size_t i = 0; i < numbers.size(); ++i) {
      const bool last = i + 1 == numbers.size();
      absl::StrAppend(&names, i == 0 ? "" : (last ? " and " : ", "), numbers[i].first);
    }
    return absl::InvalidArgumentError(
        absl::StrCat("\"", part, "\" is no NAME=NUMBER among ", names));
  }
  return absl::OkStatus();
}

}  // namespace caravan
