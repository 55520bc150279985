#ifndef CARAVAN_CLI_EXPERT_FLAGS_H_
#define CARAVAN_CLI_EXPERT_FLAGS_H_

// What every command with stages of its own can be told about their routed experts.

#include <string>

#include "CLI/CLI.hpp"
#include "worker/experts/expert_store.h"

namespace caravan {

/// The options --expert-policy, --guess-experts, --verify-experts and --record-routing.
struct ExpertFlags {
  ExpertStore::Options store;
  std::string record_routing;  // prefix of files; empty: not given

  /// Keeps a reference to this.
  void AddTo(CLI::App& command);
};

}  // namespace caravan

#endif  // CARAVAN_CLI_EXPERT_FLAGS_H_
