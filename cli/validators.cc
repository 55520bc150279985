#include "cli/validators.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace caravan {
namespace {

/// What is no number at all is refused when it is converted.
CLI::Validator WholeNumber() {
  return CLI::Validator(
      [](const std::string& text) {
        if (absl::StartsWith(text, "-")) return absl::StrCat(text, " is less than 0");
        errno = 0;
        std::strtoull(text.c_str(), nullptr, 0);
        return errno == ERANGE ? absl::StrCat(text, " is too large") : std::string();
      },
      "");
}

CLI::Validator NotNan() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0;
        const bool is_nan = absl::SimpleAtod(text, &value) && std::isnan(value);
        return is_nan ? absl::StrCat(text, " is not a number") : std::string();
      },
      "");
}

}  // namespace

CLI::Validator NotEmpty() {
  return CLI::Validator(
      [](const std::string& text) {
        return text.empty() ? std::string("must not be empty") : std::string();
      },
      "");
}

CLI::Validator NotNegative() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0;
        if (absl::SimpleAtod(text, &value) && value >= 0) return std::string();
        return absl::StrCat(text, " is not a number from 0 on");
      },
      "");
}

void CheckNumbers(CLI::App& command) {
  for (CLI::Option* const option : command.get_options()) {
    // CLI11's names of types, which options keep that were not given another one.
    const std::string type = option->get_type_name();
    for (const char* number : {"INT", "UINT", "FLOAT"}) {
      if (absl::StartsWith(type, number)) option->check(NotEmpty());
    }
    if (absl::StartsWith(type, "UINT")) option->check(WholeNumber());
    if (absl::StartsWith(type, "FLOAT")) option->check(NotNan());
  }
  for (CLI::App* const each : command.get_subcommands({})) CheckNumbers(*each);
}

}  // namespace caravan
