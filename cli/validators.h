#ifndef CARAVAN_CLI_VALIDATORS_H_
#define CARAVAN_CLI_VALIDATORS_H_

// What CLI::Option::check takes, beyond CLI11's own.

#include "CLI/CLI.hpp"

namespace caravan {

/// Refuses an empty text.
CLI::Validator NotEmpty();

/// Refuses what is no number from 0 on, and NaN.
CLI::Validator NotNegative();

/// Lets all options of `command` and its subcommands refuse what CLI11 would take for a number of
/// their type: -1 as the largest unsigned one (its CLI::Range compares after that), one that is
/// larger than any, nothing as 0, and NaN, which is within every CLI::Range. For after the last
/// option was added.
void CheckNumbers(CLI::App& command);

}  // namespace caravan

#endif  // CARAVAN_CLI_VALIDATORS_H_
