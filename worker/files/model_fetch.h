#ifndef CARAVAN_WORKER_FILES_MODEL_FETCH_H_
#define CARAVAN_WORKER_FILES_MODEL_FETCH_H_

// A stage's part of a packed model in the cache: what is missing there is fetched, then it is
// opened as any pack on this machine.

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <vector>

#include "absl/status/statusor.h"
#include "caravan/v1/cluster.pb.h"
#include "model/model_config.h"
#include "model/pack/packed_model.h"
#include "model/stage_spec.h"
#include "worker/files/file_source.h"
#include "worker/files/model_cache.h"

namespace caravan {

/// The files of the pack in which the stage's tensors lie.
std::vector<PackedFile> FilesOfStage(const PackManifest& manifest, const ModelConfig& config,
                                     const StageSpec& stage);

struct CachedModel {
  std::unique_ptr<PackedModel> model;        // of the files that are there
  std::unique_ptr<ModelCache::Lease> lease;  // on the stage's
};

/// How many bytes are there, of those of the stage's files and what loading it then reads; false
/// stops the fetch.
using FetchProgress = std::function<bool(int64_t done, int64_t total)>;

/// Brings the files of the order's stage to the cache, from `sources`, of which the first is the
/// coordinator; where they are there already, nobody is asked for anything. Borrows all.
/// Errors: Unimplemented - the coordinator's model is not packed; ResourceExhausted - no room for
///         the files, in the cache's budget or on its disk; Unavailable - the coordinator could not
///         give the manifest; Aborted - it serves another model by now; InvalidArgument - as
///         ParsePackManifest and PackedModel::Open; as FetchFiles.
absl::StatusOr<CachedModel> FetchModel(const v1::LoadStage& order, ModelCache& cache,
                                       const std::vector<FileSource*>& sources,
                                       const FetchProgress& progress, const std::stop_token& stop);

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_MODEL_FETCH_H_
