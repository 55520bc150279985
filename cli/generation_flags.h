#ifndef CARAVAN_CLI_GENERATION_FLAGS_H_
#define CARAVAN_CLI_GENERATION_FLAGS_H_

// How long a reply may be and how its tokens are drawn, as options of a command.

#include <cstdint>
#include <string>

#include "CLI/CLI.hpp"
#include "caravan/v1/jobs.pb.h"

namespace caravan {

/// The options --system, --max-tokens, --temperature, --top-p, --top-k and --seed.
struct GenerationFlags {
  std::string system;
  uint32_t max_tokens = 0;
  float temperature = 0;
  float top_p = 0;
  uint32_t top_k = 0;
  uint64_t seed = 0;

  void AddTo(CLI::App& command);

  /// A request with these, and no message but the system text.
  v1::SubmitRequest NewRequest() const;
};

void AddMessage(v1::SubmitRequest& request, const std::string& role, const std::string& content);

}  // namespace caravan

#endif  // CARAVAN_CLI_GENERATION_FLAGS_H_
