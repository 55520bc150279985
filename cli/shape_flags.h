#ifndef CARAVAN_CLI_SHAPE_FLAGS_H_
#define CARAVAN_CLI_SHAPE_FLAGS_H_

// Which model a prediction is about: one that is here, or the shape of one that is not; and what
// else `plan` and `simulate` are both told.

#include <cstdint>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/dtype.h"
#include "cli/pack_flags.h"
#include "model/model_config.h"
#include "model/stored_model.h"

namespace caravan {

/// The options --model, and for a config.json --bits or those of PackFlags.
struct ShapeFlags {
  std::string model;
  PackFlags pack;
  double bits = 0;  // 0: not given

  /// Keeps a reference to this.
  void AddTo(CLI::App& command);

  /// A stored model, or a synthetic one of the config.json's shape.
  /// Errors: as OpenStoredModel, SyntheticModel::Create and PackFlags::Types; InvalidArgument -
  ///         formats for a model that has its own, or no format of so many bits; names the flag.
  absl::StatusOr<std::unique_ptr<StoredModel>> Open() const;
};

/// Whether the model has so many positions, and its KV cache can have this format.
/// Errors: InvalidArgument - names --context or --kv.
absl::Status CheckContext(const ModelConfig& config, int64_t context_tokens, DType kv_dtype);

}  // namespace caravan

#endif  // CARAVAN_CLI_SHAPE_FLAGS_H_
