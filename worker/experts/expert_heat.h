#ifndef CARAVAN_WORKER_EXPERTS_EXPERT_HEAT_H_
#define CARAVAN_WORKER_EXPERTS_EXPERT_HEAT_H_

// What a cache learned about its experts, kept for the next run. The file is JSON:
//
//   {"format": "caravan expert heat", "version": 1, "model_fingerprint": "16 hexadecimal digits",
//    "policy": "lfu", "first_layer": 3, "scores": [[expert 0's, expert 1's, ...], ...]}
//
// with a list a layer. A score is relative to that of one use, by one row, at the step at which it
// was saved, as steps begin at 0 again in the next run; null: never used.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/experts/expert_cache.h"

namespace caravan {

/// The file's text, with the scores as of `step`.
std::string EncodeExpertHeat(uint64_t model_fingerprint, const ExpertCache& cache, int64_t step);

/// Writes what EncodeExpertHeat made, the file whole or not at all.
/// Errors: InvalidArgument - it cannot be made; DataLoss - the disk is full or failed. Each names
/// the path.
absl::Status WriteExpertHeat(const std::string& path, absl::string_view heat);

/// Sets the scores of those of the cache's layers that the file has, as if it had been saved just
/// before step 0. After an error no score was set.
/// Errors: NotFound - no such file; InvalidArgument - it is damaged, of another version, another
/// model's or another policy's. Each names the path.
absl::Status LoadExpertHeat(const std::string& path, uint64_t model_fingerprint,
                            ExpertCache& cache);

}  // namespace caravan

#endif  // CARAVAN_WORKER_EXPERTS_EXPERT_HEAT_H_
