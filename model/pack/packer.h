#ifndef CARAVAN_MODEL_PACK_PACKER_H_
#define CARAVAN_MODEL_PACK_PACKER_H_

// Makes a packed model of a checkpoint: file after file, each a few rows of a matrix at a time, so
// that memory stays bounded whatever the model. What is interrupted goes on with the next file.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/pack/importance.h"
#include "model/pack/pack_manifest.h"
#include "model/pack/pack_types.h"
#include "model/stored_model.h"

namespace caravan {

struct PackOptions {
  std::string output;  // a directory; made if it is not there
  PackTypes types;
  /// [first, end): only these layers. The embedding goes with the first of the model, the head with
  /// the last, the layer of multi-token prediction likewise. nullopt: all.
  std::optional<std::pair<int, int>> layers;
  /// Null: all columns weigh the same. Else it knows every matrix that is quantized; those that it
  /// saw no row of are treated as without.
  const Importance* importance = nullptr;
  int num_threads = 1;
  std::string doing = "packing";  // what messages call it
  /// Called now and then; false stops it.
  std::function<bool(int64_t done_bytes, int64_t total_bytes)> progress;
};

/// The files that packing gives: all but their hashes, which are empty.
/// Errors: InvalidArgument - a tensor is missing or wrong (as CheckTensors; names the source too),
///         `layers` is outside the model, the source is packed already.
absl::StatusOr<PackManifest> PlanPack(const StoredModel& source, const PackTypes& types,
                                      const std::optional<std::pair<int, int>>& layers);

/// Packs. Files of an unfinished pack of the same source (path and fingerprint) and options are
/// kept. A tokenizer that Caravan does not run is left out, as if there were none, and logged.
/// Errors: as PlanPack, StoredModel::ReadText (but for Unimplemented) and MatrixPacker::Pack;
///         InvalidArgument - the importance lacks a tensor, or has another number of columns for
///         it; `output` is empty, cannot be made, or is the source; FailedPrecondition - `output`
///         holds a pack already, or an unfinished one of another source or other options, or
///         another process packs into it; ResourceExhausted - the disk has not the room (looked at
///         before the start), or is full; DataLoss - a disk failed; Cancelled - by `progress`.
///         Each names the file.
absl::Status Pack(const StoredModel& source, const PackOptions& options);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACKER_H_
