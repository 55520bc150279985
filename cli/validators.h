#ifndef CARAVAN_CLI_VALIDATORS_H_
#define CARAVAN_CLI_VALIDATORS_H_

// What CLI::Option::check takes, beyond CLI11's own.

#include "CLI/CLI.hpp"

namespace caravan {

/// Refuses an empty text.
CLI::Validator NotEmpty();

/// Refuses what is no number from 0 on; NaN too, which CLI::Range lets through.
CLI::Validator NotNegative();

}  // namespace caravan

#endif  // CARAVAN_CLI_VALIDATORS_H_
