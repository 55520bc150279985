#include "cli/validators.h"

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace caravan {

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

}  // namespace caravan
