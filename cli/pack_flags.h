#ifndef CARAVAN_CLI_PACK_FLAGS_H_
#define CARAVAN_CLI_PACK_FLAGS_H_

// What the commands that write packed models share: options, and a run under the user's eyes.

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/pack/packer.h"
#include "model/stored_model.h"

namespace caravan {

/// What the packed model's formats are, and how many threads make it.
struct PackFlags {
  std::string preset;
  std::string experts;
  std::string dense;
  int num_threads = 0;

  /// The options --preset, --experts and --dense, which make no sense without `needed`. `kept`:
  /// what the formats are without them.
  void AddFormats(CLI::App& command, CLI::Option* needed, const std::string& kept);
  /// These and --threads.
  void AddTo(CLI::App& command, CLI::Option* needed, const std::string& kept);

  /// Errors: InvalidArgument - no such preset or format; names the option.
  absl::StatusOr<PackTypes> Types() const;
  /// Errors: as ThreadCount.
  absl::StatusOr<int> Threads() const;
};

/// Packs: says first what it will be, shows how far it is, ends on a signal. Errors: as Pack.
absl::Status PackVisibly(const StoredModel& source, PackOptions options);

}  // namespace caravan

#endif  // CARAVAN_CLI_PACK_FLAGS_H_
